#!/usr/bin/env bash
# The bundled recogniser from scratch: words, fonts, photos and real crops.
#
#   bash examples/reader/train.sh OUT PHOTOS REAL...
#
# PHOTOS is a folder of photos without text (BSDS500), each REAL a folder of labelled crops with labels.tsv (IIIT5K,
# ICDAR 2015, SVT, lines of receipts, number plates). Words need Debian's wamerican and wbritish and `pip install
# wordfreq`; fonts are those that are installed: the more, the better. Rerun the command to resume: finished files are
# kept and training continues from its checkpoint. SHARE=0.01 in the environment makes everything a hundredth as large.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1 photos=$2
shift 2
share=${SHARE:-1} start=${START:-none}
mkdir -p "$out"
scaled() { awk -v n="$1" -v s="$share" 'BEGIN { print int(n * s) < 20 ? 20 : int(n * s) }'; }

[ -e "$out/words" ] || python "$here/words.py" "$out/words"
[ -e "$out/fonts" ] || python "$here/fonts.py" "$out/fonts"
[ -e "$out/real" ] || python "$here/crops.py" "$@" -o "$out/real"

# Rendered crops: name, words, crops, style, fonts, weight in the mix. Ten to twenty-five milliseconds of a core each.
data=() mix="" seed=0
render() {
  local file=$out/$1.lmdb
  seed=$((seed + 1))
  [ -e "$file" ] || dptr render-words "$out/words/$2.txt" --unit line -o "$file" --count "$(scaled "$3")" --style "$4" \
    --fonts "$out/fonts/$5" --photos "$photos" --seed "$seed" --workers 2
  data+=("$file") mix=$mix,$6
}
render common common 120000 0.6 plain 1
render dictionary_hard dictionary 140000 hard plain 1
render street_dictionary dictionary 280000 street plain 3
render street_common common 100000 street plain 1
render street_other miscellaneous 200000 street plain 2.5
render street_ornamental common 60000 street ornamental 1.5
render street_lines lines 60000 street plain 0.7
render curved dictionary 120000 curved plain 1.5
render curved_ornamental common 40000 curved ornamental 0.7
render receipts receipts 100000 receipt plain 1
render receipts_mono receipts 140000 receipt mono 2
render documents documents 160000 document plain 1.5
render plates plates 120000 plate plates 1.5
mix=${mix#,}

real=() realmix="" validation=()
weight() {
  case $1 in *iiit5k*) echo 3 ;; *ic15*) echo 4.5 ;; *sroie*) echo 3 ;; *) echo 0.4 ;; esac
}
for crops in "$out"/real/*-train.lmdb; do
  real+=("$crops") realmix=$realmix,$(weight "$crops")
done
for crops in "$out"/real/*-validation.lmdb; do validation+=("$crops"); done
train() { # start, run, recipe changes; then -- and data
  local from=$1 run=$2 changes=()
  shift 2
  while [ "$1" != -- ]; do changes+=(--set "$1") && shift; done
  shift
  dptr finetune "$@" --recipe reader --from "$from" --charset 94+space -o "$out/$run" \
    "${validation[@]/#/--validation=}" "${changes[@]}"
}

# First: rendered crops and real ones, at a constant rate. It finds the case of labels that are in capitals, and the
# letters of real crops, whose parts are joined to new crops.
train "$start" first "finetune.mix=\"$mix$realmix\"" "finetune.steps=$(scaled 40000)" finetune.schedule=constant \
  -- "${data[@]}" "${real[@]}"
dptr export "$out/first" --to safetensors -o "$out/first.safetensors"
for name in sroie_lines svt_train; do
  crops=$out/real/$name-train.lmdb
  [ ! -e "$crops" ] || [ -e "$out/$name-recased.lmdb" ] ||
    python "$here/recase.py" "$crops" -o "$out/$name-recased.lmdb" --model "$out/first.safetensors"
done
for place in "${!real[@]}"; do
  recased=$out/$(basename "${real[$place]}" -train.lmdb)-recased.lmdb
  [ ! -e "$recased" ] || real[place]=$recased
done
words=()
for crops in "$out"/real/{iiit5k,ic15}_train-train.lmdb; do [ ! -e "$crops" ] || words+=("$crops"); done
if [ ${#words[@]} -gt 0 ] && [ ! -e "$out/parts.lmdb" ]; then
  python "$here/parts.py" "${words[@]}" -o "$out/parts.lmdb" --model "$out/first.safetensors"
fi
[ ! -e "$out/parts.lmdb" ] || real+=("$out/parts.lmdb") realmix=$realmix,3

# Second: the same with parts and the right case, until the rate has fallen to zero.
train "$out/first" run "finetune.mix=\"$mix$realmix\"" "finetune.steps=$(scaled 60000)" finetune.learning_rate=1e-3 \
  -- "${data[@]}" "${real[@]}"

# Confidences are calibrated on validation; test is read once.
python "$here/preferred_words.py" "$out"/words/{common,dictionary}.txt -o "$out/preferred.txt"
dptr export "$out/run" --to safetensors --half --lexicon "$out/preferred.txt" -o "$out/uncalibrated.safetensors"
python "$here/calibrate.py" "$out/uncalibrated.safetensors" --data "${validation[@]}" -o "$out/english.safetensors"
for crops in "$out"/real/*-test.lmdb; do dptr evaluate "$out/english.safetensors" "$crops" --single-view; done
