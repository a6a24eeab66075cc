# What the other wrappers need of a node: the container, its address, processes, temporary files.
#
# Settings: DEPTHSCOPE_CONTAINER (an Apptainer image; off by default), DEPTHSCOPE_CONTAINER_OPTIONS
# (further words for it), DEPTHSCOPE_INTERFACE (such as ib0), DEPTHSCOPE_TMP (node-local folder, short).

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

# Sends a process that is ours a signal, and waits for its end.
end_process() {
  if [[ -z $1 ]]; then return; fi
  kill "-$2" "$1" 2>/dev/null || true
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
}

# Makes this job's folder on this node, for its owner alone, in place of an earlier start's; its name.
# Names longer than so many bytes, where a limit is given, lie in /tmp.
node_folder() {
  local base=${DEPTHSCOPE_TMP:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}} name
  name=ds-$SLURM_JOB_ID-${SLURM_NODEID:-0}
  if ((${#base} + ${#name} >= ${1:-4096})); then
    say "$base is too long for the paths of sockets: /tmp is used"
    base=/tmp
  fi
  rm -rf "${base:?}/$name"
  mkdir -m 700 "$base/$name" && echo "$base/$name"
}

# Gives this script's commands a folder for what they spill or leave behind; it goes with the job.
begin_scratch() {
  scratch=$(node_folder) || return 1
  # Other nodes have none of this name, but the same place.
  export DEPTHSCOPE_TMP=${scratch%/*} TMPDIR=$scratch
}

end_scratch() { if [[ -n ${scratch:-} ]]; then rm -rf "$scratch"; fi; }
