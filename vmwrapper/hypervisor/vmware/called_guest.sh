# Does one thing in a guest, as called_guest.py says. Its arguments: a nonce, a directory to be
# in, and
#   check NAME…            the checksum of these files, and their sizes and times
#   look BYTES NAME…       what each is, and the contents of all regular files where they are not larger than that
#   parts NAME FIRST COUNT … blocks of 64 KiB
#   read BYTES FILE, tail BYTES FILE
#   receive BYTES COUNT STAGE MODE NAME … NAME…   COUNT files from the stage, and a tar of others as input
#   run BYTES COMMAND…     with so many bytes of input
#   stage USER             make a folder that the user may write to
# It prints what it found; a line with the nonce and a status; what went wrong; and the nonce once more. Asked for the same
# again, since its answer was lost, it answers as before. Input is the end of the file $blob, which this is read from.
# Without hardware virtualization each process takes 0.1 to 0.3 s.
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
most=524288 nonce=$1 directory=$2 verb=$3 d=/run/.vmwrapper-$1
shift 3

finish() {
    printf '\n%s %s\n' "$nonce" "$1"
    [ -z "$wrong" ] || printf '%s\n' "$wrong"
    [ ! -s "$d/err" ] || head -c $most "$d/err"
    printf '%s' "$nonce"
    exit 0
}

must() {
    wrong=$("$@" 2>&1) || finish 1
}

must_be_in() {
    wrong=$(cd "$1" 2>&1) || finish 1
    cd "$1"
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

read_() {
    [ -f "$2" ] || finish missing
    head -c "$1" <"$2" || finish 1
    finish 0
}

tail_() {
    [ -f "$2" ] || finish missing
    tail -c "$1" <"$2" || finish 1
    finish 0
}

look_() {
    most_here=$1
    shift
    letters='' picked='' number=0
    for name in "$@"; do
        number=$((number + 1))
        find_letter "$name"
        letters=$letters$letter
        [ $letter != f ] || picked="$picked \"\${$number}\""
    done
    printf '%s\n' "$letters"
    eval "set -- $picked"
    facts=$(facts "$@")
    total=0
    for fact in $facts; do
        echo "$fact"
        fact=${fact#*:}
        total=$((total + ${fact%%:*}))
    done
    if [ $total -le "$most_here" ]; then
        [ $# -eq 0 ] || cat "$@" || finish 1
        wrong=$(checked "$@")
    fi
    finish 0
}

find_letter() {
    if [ -L "$1" ]; then
        letter=l
    elif [ -f "$1" ]; then
        letter=f
    elif [ -d "$1" ]; then
        letter=d
    elif [ -e "$1" ]; then
        letter=s
    else
        letter=-
    fi
}

facts() {
    [ $# -eq 0 ] || stat -c '%f:%s:%Y' "$@"
}

# The faster checksum, where there is one.
checked() {
    if command -v xxhsum >/dev/null; then
        sum=$(cat /dev/null "$@" | xxhsum -H1)
        echo "xxh64 ${sum%% *}"
    else
        sum=$(cat /dev/null "$@" | sha256sum)
        echo "sha256 ${sum%% *}"
    fi
    facts "$@"
}

check_() {
    checked "$@"
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
