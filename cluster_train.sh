#!/bin/sh
# Trains with Paddle's parameter server on this machine: 2 servers and 2 trainers. On several
# machines each of the four is started by itself, see README.md.
#
#     sh cluster_train.sh                     # train_data -> cluster_model
#     sh cluster_train.sh --epochs 2          # any flag of cluster_train.py
#     PORT=7000 LOG_DIR=/tmp/logs PYTHON=python3.11 sh cluster_train.sh
#
# PYTHON   the interpreter (python)
# PORT     the first of three ports in a row: two servers, then the place to meet (6000)
# LOG_DIR  where each process writes its log (cluster_logs)
#
# Ends with 0 when all four have ended well. When one fails, stops the others, says which one and
# where its log is, and ends with 1.

set -u
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY  # brpc would go through them

PYTHON=${PYTHON:-python}
PORT=${PORT:-6000}
LOG_DIR=${LOG_DIR:-cluster_logs}
script=$(dirname -- "$0")/cluster_train.py
server_0=127.0.0.1:$PORT
server_1=127.0.0.1:$((PORT + 1))
coordinator=127.0.0.1:$((PORT + 2))

export PYTHONUNBUFFERED=1        # a log shows what has happened, not what had a minute ago
export CLUSTER_TRAIN_PARENT=$$   # with this script killed, the processes end too

running=                         # NAME:PID of each process

start() {
    name=$1
    shift
    "$PYTHON" "$script" --endpoints "$server_0,$server_1" --trainers 2 \
        --coordinator "$coordinator" "$@" >"$LOG_DIR/$name.log" 2>&1 &
    running="$running $name:$!"
}

# Takes those that have ended off the list and reports those that did not end well.
check() {
    left=
    for process in $running; do
        name=${process%%:*}
        pid=${process#*:}
        if kill -0 "$pid" 2>/dev/null; then
            left="$left $process"
            continue
        fi
        code=0
        wait "$pid" || code=$?
        [ "$code" -eq 0 ] && continue
        failed=1
        if [ "$code" -gt 128 ]; then
            reason="was killed by signal $((code - 128))"
        else
            reason="ended with code $code"
        fi
        echo "cluster_train.sh: error: $name $reason, its log is $LOG_DIR/$name.log:" >&2
        tail -n 1 "$LOG_DIR/$name.log" | sed 's/^/    /' >&2
    done
    running=$left
}

# A second that a signal interrupts.
pause() {
    sleep 1 &
    wait $!
}

stop() {
    for process in $running; do
        kill "${process#*:}" 2>/dev/null
    done
    for _ in 1 2 3 4 5; do
        left=
        for process in $running; do
            kill -0 "${process#*:}" 2>/dev/null && left="$left $process"
        done
        running=$left
        [ -z "$running" ] && return
        pause
    done
    for process in $running; do
        kill -KILL "${process#*:}" 2>/dev/null
    done
    wait
}

interrupted() {
    trap '' HUP INT TERM
    echo "cluster_train.sh: interrupted" >&2
    stop
    exit "$1"
}

mkdir -p -- "$LOG_DIR" || exit 1
trap 'interrupted 129' HUP
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

start server_0 --role pserver --current_endpoint "$server_0" "$@"
start server_1 --role pserver --current_endpoint "$server_1" "$@"
start trainer_0 --role trainer --trainer_id 0 "$@"
start trainer_1 --role trainer --trainer_id 1 "$@"
echo "2 servers and 2 trainers are running, their logs are $LOG_DIR/*.log"

failed=0
while [ -n "$running" ] && [ "$failed" -eq 0 ]; do
    pause
    check
done
if [ "$failed" -ne 0 ]; then
    stop
    exit 1
fi
grep -E '^(epoch:|model saved|kpis)' "$LOG_DIR/trainer_0.log"
exit 0
