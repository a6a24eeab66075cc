# A command on one node, without a cluster: analyses, reports, maps.

start_cluster() { :; }

stop_cluster() { :; }

cluster_lives() { :; }

run_command() { inside python -m depthscope.jobs "$@"; }
