# What such scripts may have next, to look at files and to check them:
#   look BYTES NAME…       what each is, and the contents of all regular files where they are not larger than that
#   read BYTES FILE, tail BYTES FILE
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
        wrong=$(checked "$@"; facts "$@")
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
    kind=sha256 program=sha256sum
    if command -v xxhsum >/dev/null; then kind=xxh64 program='xxhsum -H1'; fi
    if [ $# -eq 1 ]; then
        sum=$($program <"$1")
    else
        sum=$(cat /dev/null "$@" | $program)
    fi
    echo "$kind ${sum%% *}"
}
