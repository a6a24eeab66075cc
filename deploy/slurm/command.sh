# A command on one node, without a cluster: analyses, reports, maps.
#
# Settings: DEPTHSCOPE_CONTAINER and DEPTHSCOPE_CONTAINER_OPTIONS, as in ray_cluster.sh.

start_cluster() { :; }

stop_cluster() { :; }

run_command() {
  local words=(python -m depthscope.jobs "$@")
  if [[ -n ${DEPTHSCOPE_CONTAINER:-} ]]; then
    # shellcheck disable=SC2086  # options are words
    exec apptainer exec ${DEPTHSCOPE_CONTAINER_OPTIONS:---nv} "$DEPTHSCOPE_CONTAINER" "${words[@]}"
  fi
  exec "${words[@]}"
}
