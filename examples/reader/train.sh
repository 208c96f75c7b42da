#!/usr/bin/env bash
# The bundled recogniser, from nothing: words, fonts, photos and a few thousand real crops. A night of two cores.
#
#   bash examples/reader/train.sh OUT PHOTOS REAL...
#
# PHOTOS is a folder of photos without text (the bundled one saw BSDS500), each REAL a folder of labelled crops with
# labels.tsv (the bundled one saw the training crops of IIIT5K and ICDAR 2015). Words need Debian's wamerican and
# wbritish; fonts are those that are installed: the more, the better. Whatever was made already is kept, so the script
# goes on where it was stopped. Durations are those of two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1 photos=$2
shift 2
mkdir -p "$out"

# Words, fonts and the parting of the real crops: a minute.
[ -e "$out/words" ] || python "$here/words.py" "$out/words"
[ -e "$out/fonts" ] || python "$here/fonts.py" "$out/fonts"
[ -e "$out/real" ] || python "$here/crops.py" "$@" -o "$out/real"

# 985,000 rendered crops: three quarters of an hour.
render() { # name, words, crops, style, fonts, seed
  [ -e "$out/$1.lmdb" ] || dptr render-words "$out/words/$2.txt" -o "$out/$1.lmdb" --count "$3" --style "$4" \
    --fonts "$out/fonts/$5" --photos "$photos" --seed "$6" --workers 2
}
render common common 60000 0.5 plain 1
render common_hard common 60000 1.0 plain 5
render common_more common 80000 0.6 plain 7
render ornamental common 40000 0.5 ornamental 4
render dictionary dictionary 60000 0.7 plain 3
render dictionary_hard dictionary 80000 0.9 plain 8
render other miscellaneous 60000 0.5 plain 2
render other_hard miscellaneous 60000 0.9 plain 6
render street_dictionary dictionary 280000 street plain 21
render street_common common 100000 street plain 22
render street_other miscellaneous 110000 street plain 23
render street_ornamental common 55000 street ornamental 24

# Training, first from rendered crops with a fifth of real ones, two hours and a half; then further, with parts of real
# crops, which the first finds, as long again.
rendered=(common common_hard common_more ornamental dictionary dictionary_hard other other_hard
  street_dictionary street_common street_other street_ornamental)
mix=2,1,1,1,1,1,2,1,6,4,4,2
data=() real=() validation=()
for name in "${rendered[@]}"; do data+=("$out/$name.lmdb"); done
for crops in "$out"/real/*-train.lmdb; do
  real+=("$crops")
  mix=$mix,3
done
for crops in "$out"/real/*-validation.lmdb; do validation+=("$crops"); done
train() { # from, run, mix, data
  dptr finetune --recipe reader --from "$1" -o "$out/$2" --mix "$3" --validation "${validation[@]}" --data "${@:4}"
}
train none first "$mix" "${data[@]}" "${real[@]}"
dptr export "$out/first" --to safetensors -o "$out/first.safetensors"
[ -e "$out/parts.lmdb" ] || python "$here/parts.py" "${real[@]}" -o "$out/parts.lmdb" --model "$out/first.safetensors"
train "$out/first" run "$mix,3" "${data[@]}" "${real[@]}" "$out/parts.lmdb"

# What the pictures leave in doubt, words decide.
python "$here/preferred_words.py" "$out"/words/*.txt --crops "${real[@]}" -o "$out/preferred.txt"
dptr export "$out/run" --to safetensors --half --words "$out/preferred.txt" -o "$out/english.safetensors"
for crops in "$out"/real/*-validation.lmdb; do dptr evaluate "$out/english.safetensors" --data "$crops"; done
