#!/bin/bash
# Made by `agmm cluster render`, not to be edited. Submit it from a folder that every node has: sbatch FILE
#SBATCH --job-name=agmm
#SBATCH --nodes=1-2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
umask 077
turn=${SLURM_RESTART_COUNT:-0}

name=agmm
cpus=4
gpus=0
retries=3
stop_seconds=60
folder=''
secrets=''
export AGMM_STORE=s3://agmm
export AGMM_CACHE_LIMIT=200GB
export AWS_DEFAULT_REGION=us-east-1
export MLFLOW_TRACKING_URI=http://mlflow:5000
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
export MLFLOW_DISABLE_TELEMETRY=true
export RAY_JOB_STOP_WAIT_TIME_S=60
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
export RAY_USAGE_STATS_ENABLED=0
export interface=''

say() { echo "[$(date '+%F %T')] $name, job $SLURM_JOB_ID, turn $turn: $*"; }
die() { say "$*"; exit 1; }
another_turn() {
  [ "$turn" -lt "$retries" ] || return 0
  say "asking for another turn"
  again=yes
}

# Credentials come from a file that nobody else can read; they are in no argument and no log.
if [ -n "$secrets" ]; then
  [ -O "$secrets" ] || die "$secrets is not there, or not yours. It holds the credentials, as lines NAME=value."
  case $(stat -c %a "$secrets") in [46]00) ;; *) die "others can read $secrets: chmod 600 it" ;; esac
  set -a
  # shellcheck source=/dev/null
  . "$secrets"
  set +a
fi

# A token of this job alone, in a folder of mode 0700 that goes with it.
steps=()
training=
again=
private=$(mktemp -d "${folder:-$SLURM_SUBMIT_DIR}/.agmm-$SLURM_JOB_ID-XXXXXXXX")
python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$private/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/token"
export AGMM_HOME="${AGMM_HOME:-${folder:-$SLURM_SUBMIT_DIR}/.agmm}"

# Ports that follow from the job's number: two jobs on one node have ranges of their own, 40 wide, below those that
# the kernel hands out by itself. Workers of Ray take any free one.
base=$((10240 + SLURM_JOB_ID % 512 * 40))
agents=(--node-manager-port=$((base + 1)) --object-manager-port=$((base + 2)) --metrics-export-port=$((base + 3))
  --dashboard-agent-listen-port=$((base + 4)) --dashboard-agent-grpc-port=$((base + 5))
  --runtime-env-agent-port=$((base + 6)) --min-worker-port=0 --max-worker-port=0)

# shellcheck disable=SC2317,SC2329 # a trap calls it
finish() {
  code=$?
  trap '' TERM
  trap - EXIT
  : > "$private/stop"  # srun would kill what it is told to end, before it has tidied up
  for _ in $(seq 300); do
    kill -0 "${steps[@]}" 2>/dev/null || break
    sleep 0.2
  done
  for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
  for step in "${steps[@]}"; do wait "$step" || true; done
  rm -rf "$private"
  [ -z "$again" ] || scontrol requeue "$SLURM_JOB_ID" || say "Slurm does not requeue it: submit it again"
  exit "$code"
}
trap finish EXIT
# Slurm's notice, of the time limit or of a preemption: the training saves a checkpoint and ends, see below.
told=
# shellcheck disable=SC2317,SC2329
notice() {
  told=yes
  say "told to end: the training has $stop_seconds s to save"
  [ -z "$training" ] || kill -TERM "$training" 2>/dev/null || true
}
trap notice TERM

# What runs on each node. Ray's files lie in a short folder on its own disk, since the names of sockets may have 107
# bytes; workers take the head's name for it. Ray opens the folder that it is given to everybody, so it gets one within.
cat > "$private/node.sh" <<'NODE'
set -euo pipefail
umask 077
role=$1 private=$2 ray_pid=
address=$(hostname -I | cut -d' ' -f1)
[ -z "$interface" ] || address=$(ip -4 -o address show dev "$interface" | awk '{sub("/.*", "", $4); print $4; exit}')
[ -n "$address" ] || { echo "$SLURMD_NODENAME: no address${interface:+ at $interface}" >&2; exit 1; }
leave() {
  code=$?
  trap '' TERM
  # told again where it stays: a signal is lost that comes after bash has forked and before ray is there
  while [ -n "$ray_pid" ] && kill -TERM "$ray_pid" 2>/dev/null; do
    for _ in $(seq 50); do kill -0 "$ray_pid" 2>/dev/null || break; sleep 0.2; done
  done
  rm -rf "$local_folder"
  [ "$code" -eq 0 ] || [ "$code" -eq 143 ] || tail -n 20 "$private/$SLURMD_NODENAME.log" >&2
}
if [ "$role" = head ]; then
  local_folder=$(mktemp -d "/tmp/agmm-$SLURM_JOB_ID-XXXXXX")
  set -- --temp-dir="$local_folder/r" "${@:3}"
  printf '%s\n%s\n' "$address" "$local_folder" > "$private/head.part"
  mv "$private/head.part" "$private/head"
else
  local_folder=$(tail -n 1 "$private/head")
  mkdir -p "$local_folder"
  [ -O "$local_folder" ] || { echo "$SLURMD_NODENAME: $local_folder is somebody else's" >&2; exit 1; }
  set -- "${@:3}"
fi
trap leave EXIT
trap ': > "$private/told"; exit 143' TERM
ray start --block --disable-usage-stats --node-ip-address="$address" "$@" > "$private/$SLURMD_NODENAME.log" 2>&1 &
ray_pid=$!
while kill -0 "$ray_pid" 2>/dev/null; do
  [ ! -e "$private/stop" ] || exit 0
  sleep 0.5
done
wait "$ray_pid"
NODE

start() {  # start a step on nodes: start NODES COUNT ARGUMENTS...
  srun --nodelist="$1" --nodes="$2" --ntasks="$2" --ntasks-per-node=1 --cpus-per-task="$cpus" --kill-on-bad-exit=1 \
    --export=ALL bash "$private/node.sh" "${@:3}" &
  steps+=("$!")
}

nodes() { ray status 2>/dev/null | grep -c '^ 1 node_' || true; }  # as many as Ray has

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_host=${hosts[0]}
start "$head_host" 1 head "$private" --head --port="$base" --dashboard-host=127.0.0.1 --dashboard-port=$((base + 7)) \
  --ray-client-server-port=$((base + 8)) --num-cpus="$cpus" --num-gpus="$gpus" "${agents[@]}"
for _ in $(seq 600); do [ -s "$private/head" ] && break; sleep 0.2; done
[ -s "$private/head" ] || die "no node answered within two minutes: see the lines of srun above"
RAY_ADDRESS="$(head -n 1 "$private/head"):$base"
export RAY_ADDRESS
for _ in $(seq 150); do
  [ "$(nodes)" -eq 0 ] || break
  kill -0 "${steps[@]}" 2>/dev/null || { another_turn; die "Ray ended on the first node: see above"; }
  sleep 2
done
[ "$(nodes)" -gt 0 ] || { another_turn; die "Ray did not start at $RAY_ADDRESS within five minutes"; }
if [ "${#hosts[@]}" -gt 1 ]; then
  rest=$(IFS=,; echo "${hosts[*]:1}")
  start "$rest" $((${#hosts[@]} - 1)) worker "$private" --address="$RAY_ADDRESS" --num-cpus="$cpus" --num-gpus="$gpus" "${agents[@]}"
fi
for _ in $(seq 60); do  # all the nodes that Slurm gave, before the training decides how many workers it starts
  for step in "${steps[@]}"; do kill -0 "$step" 2>/dev/null || { another_turn; die "Ray ended on a node: see above"; }; done
  joined=$(nodes)
  [ "$joined" -lt "${#hosts[@]}" ] || break
  sleep 2
done
say "Ray at $RAY_ADDRESS on $joined of ${#hosts[@]} nodes"

if [ "$turn" -eq 0 ]; then
  set -- agmm train imagenet_resnet18 --set name=agmm --set 'run.workers=[1, 2]' --set run.cpus_per_worker=4 --set checkpoint.grace=20
else
  set -- agmm train imagenet_resnet18 --resume --or-start --set name=agmm --set 'run.workers=[1, 2]' --set run.cpus_per_worker=4 --set checkpoint.grace=20
fi
[ -z "$told" ] || exit 143
"$@" &
training=$!
# a notice ends `wait` before the training has ended; asked again after that, it tells the training's own code
while wait "$training" || true; kill -0 "$training" 2>/dev/null; do :; done
code=0
wait "$training" || code=$?
training=
# a preemption with send_user_signal tells this script; without, it tells Ray's steps, and nothing could be saved anew
[ ! -e "$private/told" ] || told=yes
[ -z "$told" ] || [ "$code" -eq 0 ] || another_turn
say "the training ended with $code"
exit "$code"
