# What the scripts that do one thing in a guest begin with. They have `finish`, which ends them with a status and $wrong, words
# for what went wrong.
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
most=524288 wrong=''

must_be_in() {
    wrong=$(cd "$1" 2>&1) || finish 1
    cd "$1"
}
