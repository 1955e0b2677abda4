#!/usr/bin/env bash
# The whole way from rated photos to scored photos, through the commands anyone would use: about three minutes on two
# cores.
#
# The photos are rendered and their votes drawn by a rule (examples/rendered.py), and the backbone is untrained, so that
# nothing has to be downloaded: the numbers show that the machinery works, not how good the method is on photographs.
set -euo pipefail
out=${1:-runs/quickstart}
mkdir -p "$out"

python "$(dirname "$0")/rendered.py" "$out/photos"
milnet import table "$out/photos/votes.csv" --images "$out/photos/images" --group-columns theme -o "$out/data" --overwrite
milnet features "$out/data" --backbone timm/mobilenetv2_100 --weights random:0 --size 160 --overwrite
milnet references "$out/data" -k 50 --overwrite
for folds in fold_random fold_theme; do
  milnet crossvalidate "$out/data" --recipe votes --against single --folds $folds --seeds 1 -o "$out/$folds.json"
done
milnet train "$out/data" --recipe votes -o "$out/model" --overwrite
milnet evaluate "$out/model" "$out/data" -o "$out/test.json"
milnet score "$out/photos/new" --model "$out/model" -o "$out/scores.csv"
milnet explain "$(find "$out/photos/new" -type f | sort | head -n 1)" --model "$out/model"
