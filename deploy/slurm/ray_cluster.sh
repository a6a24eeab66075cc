# A Ray cluster over the nodes of this allocation, private to the job, and commands as Ray jobs on it.
#
# Ports are free ones picked from the job's own range, temporary folders carry job and node, the token
# lies in a file of mode 0600 in DEPTHSCOPE_FOLDER. The dashboard, which takes the Ray jobs, listens
# on the head's address alone. Everything ends through the one step that runs it.
#
# Settings: DEPTHSCOPE_OBJECT_STORE (bytes a node), DEPTHSCOPE_TMP (node-local folder, short),
# DEPTHSCOPE_INTERFACE (such as ib0), DEPTHSCOPE_CONTAINER (an Apptainer image; off by default) and
# DEPTHSCOPE_CONTAINER_OPTIONS (further words for it), DEPTHSCOPE_STOP_SECONDS (time to stop in).

# Runs its words in the container, where there is one.
inside() {
  if [[ -n ${DEPTHSCOPE_CONTAINER:-} ]]; then
    # shellcheck disable=SC2086  # options are words
    exec apptainer exec ${DEPTHSCOPE_CONTAINER_OPTIONS:---nv} "$DEPTHSCOPE_CONTAINER" "$@"
  fi
  exec "$@"
}

# The address of this node that other nodes reach.
own_address() {
  local found=""
  if [[ -n ${DEPTHSCOPE_INTERFACE:-} ]]; then
    found=$(ip -4 -o addr show dev "$DEPTHSCOPE_INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}')
  fi
  if [[ -z $found ]]; then
    found=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ {print $1; exit}')
  fi
  if [[ -z $found ]]; then found=$(hostname -I | awk '{print $1}'); fi
  echo "$found"
}

# As many free ports as are asked for, below the range that systems hand out by themselves.
free_ports() {
  local wanted=$1 port=$((10240 + (SLURM_JOB_ID * 64 + ${2:-0} * 8) % 22000)) found=()
  while ((${#found[@]} < wanted)); do
    if ! (exec 3<>"/dev/tcp/$head_address/$port") 2>/dev/null; then found+=("$port"); fi
    port=$((port + 1))
  done
  echo "${found[@]}"
}

# One node's part; runs on every node until it is told to stop. Node 0 is the head.
ray_node() {
  local temporary=${DEPTHSCOPE_TMP:-${SLURM_TMPDIR:-/tmp}}/ds-$SLURM_JOB_ID-$SLURM_NODEID ray=""
  local address
  address=$(own_address)
  # What an earlier start of this job left on the node is of no use.
  rm -rf "$temporary"
  mkdir -m 700 "$temporary" || exit 1
  trap 'kill -TERM $ray 2>/dev/null' USR2
  # Slurm is ending every process of the job, and Ray would drain for as long as Slurm waits: without
  # its first process the others end at once, and the folder can go in time.
  trap 'kill -KILL $ray 2>/dev/null' TERM
  local words=(ray start --block --disable-usage-stats "--node-ip-address=$address"
    "--temp-dir=$temporary" "--object-store-memory=${DEPTHSCOPE_OBJECT_STORE:-2000000000}"
    "--num-cpus=${SLURM_CPUS_ON_NODE:-1}" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}"
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
  if ((SLURM_NODEID == 0)); then
    words+=(--head "--port=$head_port" --include-dashboard=true "--dashboard-host=$address"
      "--dashboard-port=$dashboard_port" "--ray-client-server-port=$client_port")
  else
    until (exec 3<>"/dev/tcp/$head_address/$head_port") 2>/dev/null; do sleep 0.5; done
    words+=("--address=$head_address:$head_port")
  fi
  (inside "${words[@]}") >"$temporary/ray-start.log" 2>&1 &
  ray=$!
  while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
  # Ray's own processes are children of this step, which ends with them.
  if [[ ! -f $DEPTHSCOPE_FOLDER/stopping ]]; then
    say "Ray ended on $(hostname):"
    tail -n 20 "$temporary/ray-start.log" >&2
  fi
  # The last of Ray's processes may still be writing there.
  rm -rf "$temporary" 2>/dev/null || { sleep 2 && rm -rf "$temporary"; }
}

start_cluster() {
  rm -f "$DEPTHSCOPE_FOLDER/stopping"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$DEPTHSCOPE_FOLDER/token-$SLURM_JOB_ID
  export RAY_USAGE_STATS_ENABLED=0
  (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
  head_address=$(own_address)
  local ports
  read -r -a ports <<<"$(free_ports 3 "${SLURM_RESTART_COUNT:-0}")"
  head_port=${ports[0]} dashboard_port=${ports[1]} client_port=${ports[2]}
  export head_address head_port dashboard_port client_port
  local node_script
  node_script="$(declare -f say inside own_address ray_node); ray_node"
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --overlap --mem=0 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" --no-kill --kill-on-bad-exit=0 \
    --wait=0 --export=ALL bash -c "$node_script" &
  cluster_pid=$!
  local waited=0
  until (exec 3<>"/dev/tcp/$head_address/$dashboard_port") 2>/dev/null; do
    if ! kill -0 "$cluster_pid" 2>/dev/null; then
      say "Ray did not start on $(hostname)"
      return 1
    fi
    if [[ -n $stopping ]]; then return 75; fi
    if ((waited++ > 600)); then
      say "Ray's dashboard did not answer within ten minutes"
      return 1
    fi
    sleep 1
  done
  say "Ray runs on $SLURM_JOB_NUM_NODES nodes, head $head_address:$head_port"
}

run_command() {
  inside python -m depthscope.jobs submit --ray "http://$head_address:$dashboard_port" \
    --follow --no-ship --no-record --await-nodes "$SLURM_JOB_NUM_NODES" -- "$@"
}

forget_secrets() { rm -f "${RAY_AUTH_TOKEN_PATH:-}"; }

stop_cluster() {
  touch "$DEPTHSCOPE_FOLDER/stopping"
  if [[ -n ${cluster_pid:-} ]]; then
    # srun hands this signal to every node; TERM would make it kill them at once.
    kill -USR2 "$cluster_pid" 2>/dev/null || true
    while kill -0 "$cluster_pid" 2>/dev/null; do wait "$cluster_pid" || true; done
  fi
  forget_secrets
  rm -f "$DEPTHSCOPE_FOLDER/stopping"
}
