#!/bin/sh
# Fills Numba's cache while the image is built, so that no process on a new node spends 10 s on it:
# one picture there and back with the default model goes through every compiled loop.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cd "$folder"
python -c 'from PIL import Image; Image.effect_noise((300, 200), 64).save("a.png")'
pqmim compress a.png a.pqm --price 0.06
pqmim decompress a.pqm b.png
