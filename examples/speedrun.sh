#!/usr/bin/env bash
# From photographs to weights, in one go: what made the weights that ship, and what makes others.
#
#   examples/speedrun.sh --cpu --images FOLDER       four hours of two cores; the same again goes on
#   examples/speedrun.sh --gpu --images FOLDER       25 minutes of one large card
#   examples/speedrun.sh --cpu --input 'DIR/*.tar'   photographs in WebDataset shards
#
#   --output RUN    logs, checkpoints, weights, card (.run/speedrun)
#   --go-on W       begin with these weights: a path, a name, "default"; "none": from nothing
#   --eval FOLDER   images to measure at the end, beside JPEG, WebP, AVIF and JPEG XL
#
# Every step is one command, can be interrupted, and goes on where it was. To be kept: RUN/weights.
set -euo pipefail
cd "$(dirname "$0")/.."

device=cpu size=small first=150 second=90 go_on=default output=.run/speedrun eval="" source=()
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) shift ;;
    --gpu) device=cuda size=base first=15 second=9 go_on=none; shift ;;
    --images | --input) source=("$1" "$2"); shift 2 ;;
    --output) output=$2; shift 2 ;;
    --go-on) go_on=$2; shift 2 ;;
    --eval) eval=$2; shift 2 ;;
    *) echo "speedrun: what is $1? See the head of $0" >&2; exit 2 ;;
  esac
done
[ ${#source[@]} = 2 ] || { echo "speedrun: --images FOLDER or --input 'DIR/*.tar'" >&2; exit 2; }
python=${PYTHON:-.venv/bin/python}
train=("${source[@]}" --device "$device" --threads "${THREADS:-2}" --size "$size")
begin=()
[ "$go_on" = none ] || begin=(--go-on "$go_on")

# Stage 1, pixels and codes. The model begins as a transform codec (principal components, k-means
# codebooks at eight prices of a bit); with --go-on its trunks are those of other weights. A step is
# 8 crops of 160 pixels on a CPU (0.3 megapixels/s on two cores) and 32 of 256 on a GPU. The log has
# a score on held-out crops every fiftieth of the run: one less is 1 % of the rate.
"$python" -m pqmim train autoencoder "${train[@]}" "${begin[@]}" --minutes "$first" \
  --output "$output/autoencoder" | tee "$output.last"
autoencoder=$(tail -n 1 "$output.last")

# Stage 2, the entropy model, on windows of codes that are made while it runs; the last 15 % of the
# time through the integers that decoders will compute with. The log has bits a code on held-out
# photographs beside those of static tables.
"$python" -m pqmim train prior "${train[@]}" --weights "$autoencoder" --minutes "$second" \
  --output "$output/prior" | tee "$output.last"
weights=$(tail -n 1 "$output.last")
mkdir -p "$output/weights" && cp "$weights" "$output/weights/"

# Evaluation: whole files beside other codecs, and what the entropy model saves.
if [ -n "$eval" ]; then
  "$python" -m pqmim eval "$eval" --weights "$weights" --published default --output "$output/rd"
  "$python" -m pqmim eval "$eval" --weights "$weights" --rates | tee "$output/rates.txt"
fi

# The card: what it was made of, and how it went.
{
  echo "# $(basename "$weights" .safetensors)"
  echo
  echo "Made with \`examples/speedrun.sh\`, ${source[*]}, device $device, size $size, begun with $go_on."
  echo
  echo "| stage | recipe | last line of the log |"
  echo "|---|---|---|"
  for stage in autoencoder prior; do
    echo "| $stage | \`$(head -n 1 "$output/$stage/log.jsonl")\` | \`$(tail -n 1 "$output/$stage/log.jsonl")\` |"
  done
} > "$output/README.md"
echo "speedrun: $output/weights/$(basename "$weights"), card $output/README.md"
