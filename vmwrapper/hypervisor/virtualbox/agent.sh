# Answers what the host asks, in a guest of VirtualBox's: started once, it goes on in each snapshot. The host's side is
# requests.py. $in and $out are folders that both see; a request is a script of the host's in $in, that opens a file in $out
# and prints its answer, which is whole once it ends with its nonce. A signal ends a look into such a folder, and a shell may
# get one whenever a child ends: so looks count only where they find this file, and a request is forgotten only where two of
# them have not found it.
# Each nap costs a process. Behind a request the next one comes soon: so then there are looks without a nap, and then with short
# ones. All others are long, and ended by who has answered.
at_once=4 shorts=4 short=0.1 long=1
taken=' ' last=' ' naps=0

read -r me rest </proc/self/stat # $$ may be the shell's that we are a part of
set -C
if ! { echo "$me" >"$home/agent"; } 2>/dev/null; then
    read -r other <"$home/agent" || exit 0 # it is about to write there
    ! kill -0 "$other" 2>/dev/null || exit 0
    set +C
    echo "$me" >"$home/agent"
fi
set +C
true >"$home/nap"

answer() {
    nonce=$1 body=$in/$1.body ours=$home/$1
    exec >/dev/null 2>/dev/null </dev/null
    trap answered EXIT
    . "$in/$nonce.request"
}

answered() {
    [ -e "$out/$nonce.answer" ] || exec >"$out/$nonce.answer"
    printf ' %s' "$nonce"
    echo yes >"$home/answered"
    read -r napping <"$home/nap" && kill "$napping"
    [ ! -e "$ours.err" ] || rm -f "$ours.out" "$ours.err"
}

nap_until_answered() {
    sleep $long &
    echo $! >"$home/nap"
    [ ! -s "$home/answered" ] || kill $! # who has answered since we looked may not have known of this nap
    wait $!
    true >"$home/nap"
}

while true; do
    true >"$home/answered"
    seen=' ' begun='' whole=''
    for file in "$in"/*; do
        case $file in
        */agent.sh) whole=yes ;;
        *.request)
            request=${file##*/}
            request=${request%.request}
            seen="$seen$request "
            case $taken in
            *" $request "*) ;;
            *)
                begun=yes
                answer "$request" &
                ;;
            esac
            ;;
        esac
    done
    if [ "$whole" ]; then
        taken=$last$seen last=$seen
    else
        taken=$taken$seen
    fi
    naps=$((naps + 1))
    [ -z "$begun" ] || naps=0
    if [ "$begun" ] || [ $naps -gt $((at_once + shorts)) ]; then
        nap_until_answered
    elif [ $naps -gt $at_once ]; then
        sleep $short
    fi
done
