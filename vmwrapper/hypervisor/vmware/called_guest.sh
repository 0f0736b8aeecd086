# Does one thing in a guest, as called_guest.py says. Its arguments: a nonce, a directory to be
# in, and
#   check NAME…            the checksum of these files, and their sizes and times
#   parts NAME FIRST COUNT … blocks of 64 KiB
#   look, read, tail       as guest_files.sh says, which is in front of this
#   receive BYTES COUNT STAGE MODE NAME … NAME…   COUNT files from the stage, and a tar of others as input
#   run BYTES COMMAND…     with so many bytes of input
#   stage USER             make a folder that the user may write to
# It prints what it found; a line with the nonce and a status; what went wrong; a space, and the nonce once more. Asked for the same
# again, since its answer was lost, it answers as before. Input is the end of the file $blob, which this is read from.
# Without hardware virtualization each process takes 0.1 to 0.3 s.
nonce=$1 directory=$2 verb=$3 d=/run/.vmwrapper-$1
shift 3

finish() {
    printf '\n%s %s\n' "$nonce" "$1"
    [ -z "$wrong" ] || printf '%s\n' "$wrong"
    [ ! -s "$d/err" ] || head -c $most "$d/err"
    printf ' %s' "$nonce"
    exit 0
}

must() {
    wrong=$("$@" 2>&1) || finish 1
}

run_() {
    bytes=$1 in=/dev/null
    shift
    command -v "$1" >/dev/null 2>&1 || finish missing
    [ -d "$d" ] || must mkdir -m 700 "$d"
    if (set -C && : >"$d/begun") 2>/dev/null; then
        if [ "$bytes" -gt 0 ]; then
            in=$d/in
            tail -c "$bytes" "$blob" >"$in"
        fi
        (
            trap '' HUP
            "$@" <"$in" >"$d/out" 2>"$d/err"
            echo $? >"$d/status"
        ) </dev/null >/dev/null 2>&1 &
        wait
    fi
    until [ -s "$d/status" ]; do sleep 0.2; done
    read -r status <"$d/status"
    [ ! -s "$d/out" ] || head -c $((most + 1)) "$d/out"
    finish "$status"
}

check_() {
    checked "$@"
    facts "$@"
    finish 0
}

parts_() {
    while [ $# -ge 3 ]; do
        dd bs=65536 skip="$2" count="$3" <"$1" 2>/dev/null || finish 1
        shift 3
    done
    finish 0
}

stage_() {
    must mkdir -p -m 700 ".vmwrapper-$nonce"
    must chown "$1" ".vmwrapper-$nonce"
    must ln -sfn "$PWD/.vmwrapper-$nonce" "/tmp/.vmwrapper-$nonce"
    finish 0
}

receive_() {
    bytes=$1 count=$2 staged=$3
    shift 3
    if [ "$bytes" -gt 0 ]; then
        wrong=$(tail -c "$bytes" "$blob" | tar -xf - 2>&1) || finish 1
    fi
    number=0
    while [ $number -lt "$count" ]; do
        number=$((number + 1))
        from=.vmwrapper-$staged/$number
        if [ -e "$from" ]; then # else it was moved when this was asked for before
            must mkdir -p "${2%/*}"
            must chown 0:0 "$from"
            must chmod "$1" "$from"
            must mv -f "$from" "$2"
        fi
        shift 2
    done
    [ "$count" -eq 0 ] || rm -rf ".vmwrapper-$staged" "/tmp/.vmwrapper-$staged"
    checked "$@"
    finish 0
}

[ "$directory" = . ] || must_be_in "$directory"
"${verb}_" "$@"
