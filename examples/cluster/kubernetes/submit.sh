#!/bin/sh
# sh PATH/TO/examples/cluster/kubernetes/submit.sh [KUBECTL OPTIONS], with the claim glue-work there, which holds
# glue.yaml and the data. The experts first; the prior when all of them are there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
kubectl "$@" apply -f "$here/experts.yaml"
kubectl "$@" wait --for=condition=complete --timeout=24h job/glue-experts
kubectl "$@" apply -f "$here/prior.yaml"
