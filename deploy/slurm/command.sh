# A command on one node, without a cluster: analyses, reports, maps.

start_cluster() { begin_scratch; }

stop_cluster() { end_scratch; }

cluster_lives() { :; }

run_command() { inside python -m depthscope.jobs "$@"; }
