#!/usr/bin/env bash
# generate, for supervisors that try again whatever ends with another code than 0 (KubeRay's backoffLimit makes a new
# GPU cluster for each try): run_job.sh FILE [arguments of generate]
# Exit codes 2 (settings, prompts or weights that cannot be used) and 3 (done, more given up than `max_failed` allows) would be the
# same again: they are reported and end as 0. All others stay: 75 and a lost head go on in a new cluster.
# FILE receives the true exit code, for whoever must know how it ended; keep it where it outlives the cluster.
set -uo pipefail
result="$1"
shift
mkdir -p "$(dirname "$result")"
rm -f "$result"
driver=
trap '[ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null' TERM INT
code=143
python -m ttsvar_ray generate "$@" &
driver=$!
# A signal ends `wait`, not the driver, which is still committing.
while kill -0 "$driver" 2>/dev/null; do code=0; wait "$driver" || code=$?; done
echo "$code" > "$result"
case "$code" in
    2) echo "run_job: exit code 2: nothing was generated, and trying again would not help; mend what is named above" ;;
    3) echo "run_job: exit code 3: done, but more prompts were given up than max_failed allows; see failed/ in the output" ;;
    *) exit "$code" ;;
esac
