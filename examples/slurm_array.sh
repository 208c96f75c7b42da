#!/bin/bash
# Sixteen shares of a prompt store, each as one task of a Slurm array:
#
#   sbatch --array=1-16 examples/slurm_array.sh
#   sbatch --dependency=afterok:JOB --wrap "dptr merge prompts"
#
# A task that was killed or requeued resumes from its commits.
#SBATCH --job-name=dptr-embed-text
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --requeue
set -euo pipefail

dptr embed-text "${CORPUS:-words.txt}" --clip "${CLIP:-tiny}" -o "${OUT:-prompts}" \
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
