#!/bin/sh
# Ask a running server about images, with curl.
#
#     sh examples/client.sh tests/samples/seven.png tests/samples/cat.png
#
# ODDIGIT_URL names another server than http://127.0.0.1:8000, and ODDIGIT_KEY its API key.
set -eu
url=${ODDIGIT_URL:-http://127.0.0.1:8000}
if [ $# -eq 0 ]; then
    echo "Usage: sh examples/client.sh IMAGE..." >&2
    exit 2
fi

# ask ENDPOINT [CURL OPTION...]: send the images as one form; stop with the server's explanation when it refuses.
ask() {
    endpoint=$1
    shift
    curl --silent --show-error --fail-with-body --max-time 30 ${ODDIGIT_KEY:+--header "X-API-Key: $ODDIGIT_KEY"} \
        --write-out '\n' "$@" "$url$endpoint"
}

# A file's name may hold spaces, so the options are collected in the positional parameters, not in a string.
count=$#
for image in "$@"; do
    set -- "$@" --form "file=@$image"
done
shift "$count"

ask /score "$@"
ask /embed "$@"
ask /reconstruct "$@" --header 'Accept: image/png' --output reconstructions.png || { # rows: input, reconstruction, error map
    [ $? -ne 22 ] || cat reconstructions.png >&2 # an error status: the file holds the explanation
    rm -f reconstructions.png
    exit 1
}
