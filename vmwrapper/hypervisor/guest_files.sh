# What the scripts that do one thing in a guest have in common: it stands in front of them. They have `finish`, which ends them
# with a status and $wrong, words for what went wrong.
#   look BYTES NAME…       what each is, and the contents of all regular files where they are not larger than that
#   read BYTES FILE, tail BYTES FILE
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
most=524288 wrong=''

must_be_in() {
    wrong=$(cd "$1" 2>&1) || finish 1
    cd "$1"
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
