#!/bin/sh
# Run in the folder that holds glue.yaml: sh PATH/TO/examples/cluster/slurm/submit.sh [SBATCH OPTIONS]
# The array of experts first; the prior when all of its tasks have ended well.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
experts=$(sbatch --parsable "$@" "$here/experts.sbatch")
sbatch --dependency="afterok:${experts%%;*}" "$@" "$here/prior.sbatch"
