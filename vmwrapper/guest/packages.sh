# What launcher.sh does with packages in /run/vmwrapper/scratch/packages, of the kind tar, deb, rpm or apk:
#   install KIND FILE…
#   uninstall KIND FILE…
install() {
    enter_packages "$1"
    shift
    case $kind in
    tar) for file in "$@"; do unpacked "$file" | tar -C / -xf - || exit 1; done ;;
    deb) DEBIAN_FRONTEND=noninteractive dpkg -i "$@" ;;
    rpm) rpm -i "$@" ;;
    apk) apk add --allow-untrusted --no-network "$@" ;;
    esac >/dev/null || exit 1
}

uninstall() {
    enter_packages "$1"
    shift
    for file in "$@"; do
        case $kind in
        tar) unpacked "$file" | tar -tf - | tr '\n' '\0' | (cd / && xargs -0 rm -f --) ;;
        deb) dpkg -r "$(dpkg-deb -f "$file" Package)" ;;
        rpm) rpm -e "$(rpm -qp "$file")" ;;
        apk) apk del "$(tar -xzOf "$file" .PKGINFO | sed -n 's/^pkgname = //p')" ;;
        esac
    done >/dev/null 2>&1
}

unpacked() {
    case $1 in
    *.gz | *.tgz) zcat "$1" ;;
    *.bz2) bzcat "$1" ;;
    *.xz) xzcat "$1" ;;
    *) cat "$1" ;;
    esac
}

enter_packages() {
    kind=$1
    tool=$kind
    [ "$kind" = deb ] && tool=dpkg
    command -v "$tool" >/dev/null || fail 1 "it has no $tool"
    cd "$home/scratch/packages" || exit 1
}
