#!/bin/sh
# Process 1 of the container. As process 1, Python would ignore SIGTERM until it has started, so `serve` is a child, to which
# SIGTERM and SIGINT are passed on. A server that is stopped while it starts ends with success.
[ "$1" = serve ] || exec python3 -m app "$@"
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
