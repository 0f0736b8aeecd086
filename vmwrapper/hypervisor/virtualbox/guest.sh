# Does one thing in a guest of VirtualBox's, as guest.py says; agent.sh runs it. Its arguments: a nonce, a directory to be in, and
#   hello
#   look, read, tail       as guest_files.sh says, which is in front of this where it is needed
#   receive NAME…          files in a tar, which is $body
#   run COMMAND…           with $body as input
# It prints what it found; a line with the nonce and a status; and what went wrong. $ours.out and $ours.err are its own.
# Without hardware virtualization each process takes 0.1 to 0.3 s.
nonce=$1 directory=$2 verb=$3 answer=$out/$1.answer
shift 3

finish() {
    printf '\n%s %s\n' "$nonce" "$1"
    [ -z "$wrong" ] || printf '%s\n' "$wrong"
    [ ! -s "$ours.err" ] || head -c $most "$ours.err"
    exit 0
}

hello_() {
    finish 0
}

# For a command of any length the answer is opened only at its end: a snapshot may come first.
run_() {
    if ! command -v "$1" >/dev/null 2>&1; then
        exec >"$answer"
        finish missing
    fi
    "$@" <"$body" >"$ours.out" 2>"$ours.err"
    status=$?
    exec >"$answer"
    [ ! -s "$ours.out" ] || head -c $((most + 1)) "$ours.out"
    finish $status
}

receive_() {
    wrong=$(tar -xf "$body" 2>&1) || finish 1
    checked "$@"
    finish 0
}

[ "$verb" = run ] || exec >"$answer"
[ "$directory" = . ] || must_be_in "$directory"
"${verb}_" "$@"
