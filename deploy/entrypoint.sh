#!/bin/sh
# Process 1 of the container. Passes SIGTERM and SIGINT on to the command: as process 1, Python would ignore them until it has
# started. A command that is stopped while it starts ends with success.
stop() {
    stopped=yes
    [ -z "$child" ] || kill -s TERM "$child" 2> /dev/null
}
child='' stopped=''
trap stop TERM INT
python3 -m app "$@" <&0 &
child=$!
[ -z "$stopped" ] || stop
wait "$child"
status=$?
while kill -0 "$child" 2> /dev/null; do # a signal ended the wait
    wait "$child"
    status=$?
done
[ "$stopped$status" != yes143 ] || status=0
exit "$status"
