# A Ray cluster over the nodes of this allocation, private to the job, and commands as Ray jobs on it.
#
# Ports are free ones picked from the job's own range, temporary folders carry job and node, the token
# lies in a file of mode 0600 in DEPTHSCOPE_FOLDER. The dashboard, which takes the Ray jobs, listens
# on the head's address alone. Everything ends through the one step that runs it.
#
# Settings: DEPTHSCOPE_OBJECT_STORE (bytes a node), DEPTHSCOPE_STOP_SECONDS (time to stop in), and
# those of node.sh.

# Whether anything listens on a port of the head.
listens() { (exec 3<>"/dev/tcp/$head_address/$1") 2>/dev/null; }

# As many free ports as are asked for, below the range that systems hand out by themselves.
free_ports() {
  local wanted=$1 port=$((10240 + (SLURM_JOB_ID * 64 + ${2:-0} * 8) % 22000)) found=()
  while ((${#found[@]} < wanted)); do
    if ! listens "$port"; then found+=("$port"); fi
    port=$((port + 1))
  done
  echo "${found[@]}"
}

# One node's part; runs on every node until it is told to stop. Node 0 is the head.
ray_node() {
  local temporary address ray="" ending=""
  address=$(own_address)
  # Ray's sockets lie 66 bytes further down, and the path of a socket has 107 at most.
  temporary=$(node_folder 41) || exit 1
  # What Ray's processes leave beside Ray's own folder goes with it.
  export TMPDIR=$temporary
  trap 'ending=1; if [[ -n $ray ]]; then kill -TERM "$ray" 2>/dev/null; fi' USR2
  trap 'on_term' TERM
  # Ray opens the folder that it is given to everybody, so it gets one inside ours.
  local words=(ray start --block --disable-usage-stats "--node-ip-address=$address"
    "--temp-dir=$temporary/r" "--object-store-memory=${DEPTHSCOPE_OBJECT_STORE:-2000000000}"
    "--num-cpus=${SLURM_CPUS_ON_NODE:-1}" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}"
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
  if ((SLURM_NODEID == 0)); then
    words+=(--head "--port=$head_port" --include-dashboard=true "--dashboard-host=$address"
      "--dashboard-port=$dashboard_port" "--ray-client-server-port=$client_port"
      "--node-manager-port=$raylet_port")
  else
    until [[ -n $ending ]] || listens "$head_port"; do sleep 0.5; done
    words+=("--address=$head_address:$head_port")
  fi
  if [[ -z $ending ]]; then
    (inside "${words[@]}") >"$temporary/ray-start.log" 2>&1 &
    ray=$!
    while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
  fi
  # Ray's own processes are children of this step, which ends with them.
  if [[ -z $ending ]]; then
    say "Ray ended on $(hostname):"
    tail -n 20 "$temporary/ray-start.log" >&2
    if ((SLURM_NODEID == 0)); then touch "$head_ended"; fi
  fi
  # The last of Ray's processes may still be writing there.
  rm -rf "$temporary" 2>/dev/null || { sleep 2 && rm -rf "$temporary"; }
}

# A node's part of the job is asked to end.
on_term() {
  if job_runs; then
    # The grace time before a preemption, of which Slurm may tell the steps alone.
    if ((SLURM_NODEID == 0)); then kill -USR1 "$script_pid"; fi
    return
  fi
  ending=1
  # Slurm is ending every process of the job, and Ray would drain for as long as Slurm waits, its
  # workers longer still where Slurm does not find them: without them the folder can go in time.
  if [[ -n $ray ]]; then kill -KILL "$ray" 2>/dev/null; fi
  # Once more for those that were being started meanwhile.
  end_users_of "$temporary"
  end_users_of "$temporary"
}

# Ends the processes, of those that are ours, that have files open in a folder.
end_users_of() {
  local users
  users=$(find /proc/[0-9]*/fd -lname "$1/*" 2>/dev/null | cut -d/ -f3 | sort -u)
  # shellcheck disable=SC2086  # process ids are words
  if [[ -n $users ]]; then kill -KILL $users 2>/dev/null; fi
}

start_cluster() {
  # An address of the user's own would lead the job's commands to another cluster.
  unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$DEPTHSCOPE_FOLDER/token-$SLURM_JOB_ID
  export RAY_USAGE_STATS_ENABLED=0 script_pid=$$ head_ended=$DEPTHSCOPE_FOLDER/head-ended-$SLURM_JOB_ID
  rm -f "$head_ended"
  (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
  if [[ ! -s $RAY_AUTH_TOKEN_PATH ]]; then
    say "$RAY_AUTH_TOKEN_PATH cannot be written: is a quota full?"
    return 1
  fi
  head_address=$(own_address)
  local ports
  read -r -a ports <<<"$(free_ports 4 "${SLURM_RESTART_COUNT:-0}")"
  head_port=${ports[0]} dashboard_port=${ports[1]} client_port=${ports[2]} raylet_port=${ports[3]}
  export head_address head_port dashboard_port client_port raylet_port
  local node_script
  node_script="$(declare -f say job_runs listens inside own_address node_folder end_users_of on_term ray_node); ray_node"
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --overlap --mem=0 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" --no-kill --kill-on-bad-exit=0 \
    --wait=0 --export=ALL bash -c "$node_script" &
  cluster_pid=$!
  local waited=0
  # The raylet comes last.
  until listens "$dashboard_port" && listens "$raylet_port"; do
    if ! cluster_lives; then
      say "Ray did not start on $(hostname)"
      return 1
    fi
    if [[ -n $stopping ]]; then return 75; fi
    if ((waited++ > 600)); then
      say "Ray did not answer within ten minutes"
      return 1
    fi
    sleep 1
  done
  say "Ray runs on $SLURM_JOB_NUM_NODES nodes, head $head_address:$head_port"
}

# Without its head no command can run on this allocation any more.
cluster_lives() { kill -0 "$cluster_pid" 2>/dev/null && [[ ! -e $head_ended ]]; }

run_command() {
  inside python -m depthscope.jobs submit --ray "http://$head_address:$dashboard_port" \
    --follow --no-ship --no-record --await-nodes "$SLURM_JOB_NUM_NODES" -- "$@"
}

forget_secrets() { rm -f "${RAY_AUTH_TOKEN_PATH:-}"; }

stop_cluster() {
  # srun hands this signal to every node; TERM would make it kill them at once.
  end_process "${cluster_pid:-}" USR2
  rm -f "${head_ended:-}"
  forget_secrets
}
