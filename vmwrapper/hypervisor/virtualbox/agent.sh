# Answers what the host asks, in a guest of VirtualBox's: started once, it goes on in each snapshot. The host's side is
# requests.py. $in and $out are folders that both see; a request is a script of the host's in $in, that opens a file in $out
# and prints its answer, which is whole once it ends with its nonce. A signal ends a look into such a folder, and a shell may
# get one whenever a child ends: so a request is forgotten only where two looks in a row have not found it.
# Each nap costs a process: it is a long one while a request may be answered, which wakes us.
short=0.1 shorts=4 long=1 at_once=4
taken=' ' last=' ' naps=0

read -r me rest </proc/self/stat # $$ may be the shell's that we are a part of
set -C
if ! { echo "$me" >"$home/agent"; } 2>/dev/null; then # there is one
    read -r other <"$home/agent" && kill -0 "$other" 2>/dev/null && exit 0
fi
set +C
echo "$me" >"$home/agent"

answer() {
    nonce=$1 body=$in/$1.body ours=$home/$1
    exec >/dev/null 2>/dev/null </dev/null
    trap answered EXIT
    . "$in/$nonce.request"
}

answered() {
    [ -e "$out/$nonce.answer" ] || exec >"$out/$nonce.answer"
    printf ' %s' "$nonce"
    read -r napping <"$home/nap" && kill "$napping"
    [ ! -e "$ours.err" ] || rm -f "$ours.out" "$ours.err"
}

nap_until_answered() {
    sleep $long &
    echo $! >"$home/nap"
    wait $!
    : >"$home/nap"
}

while :; do
    seen=' ' begun=''
    for request in "$in"/*.request; do
        [ -e "$request" ] || continue
        request=${request##*/}
        request=${request%.request}
        seen="$seen$request "
        case $taken in
        *" $request "*) ;;
        *)
            begun=yes
            answer "$request" &
            ;;
        esac
    done
    taken=$last$seen last=$seen
    if [ "$begun" ]; then
        naps=0
        nap_until_answered
    elif [ $((naps += 1)) -gt $((at_once + shorts)) ]; then
        sleep $long
    elif [ $naps -gt $at_once ]; then
        sleep $short
    fi
done
