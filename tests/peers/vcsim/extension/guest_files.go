package simulator

import (
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// `exists` is true also for a link that leads nowhere. In a folder that one may not enter, nothing exists.
const shellWords = `
exists() { [ -e "$1" ] || [ -L "$1" ]; }
parent() { d=$(dirname "$1"); [ -d "$d" ] || exit 70; [ -w "$d" ] && [ -x "$d" ] || exit 72; }
`

func (m *GuestFileManager) MakeDirectoryInGuest(ctx *Context, req *types.MakeDirectoryInGuest) soap.HasFault {
	body := new(methods.MakeDirectoryInGuestBody)
	const script = shellWords + `
if [ "$2" = true ]; then [ -e "$1" ] && ! [ -d "$1" ] && exit 71; mkdir -p "$1" || exit 72; exit; fi
exists "$1" && exit 71; parent "$1"; mkdir "$1" || exit 72`
	parents := strconv.FormatBool(req.CreateParentDirectories)
	if body.Fault_ = say(ctx, req.Vm, req.Auth, script, req.DirectoryPath, parents); body.Fault_ == nil {
		body.Res = new(types.MakeDirectoryInGuestResponse)
	}
	return body
}

func (m *GuestFileManager) DeleteDirectoryInGuest(ctx *Context, req *types.DeleteDirectoryInGuest) soap.HasFault {
	body := new(methods.DeleteDirectoryInGuestBody)
	const script = shellWords + `
exists "$1" || exit 70; [ -d "$1" ] && ! [ -L "$1" ] || exit 73; parent "$1"
if [ "$2" = true ]; then rm -rf "$1" || exit 72; exit; fi
[ -z "$(ls -A "$1")" ] || exit 75; rmdir "$1" || exit 72`
	recursive := strconv.FormatBool(req.Recursive)
	if body.Fault_ = say(ctx, req.Vm, req.Auth, script, req.DirectoryPath, recursive); body.Fault_ == nil {
		body.Res = new(types.DeleteDirectoryInGuestResponse)
	}
	return body
}

func (m *GuestFileManager) DeleteFileInGuest(ctx *Context, req *types.DeleteFileInGuest) soap.HasFault {
	body := new(methods.DeleteFileInGuestBody)
	const script = shellWords + `
exists "$1" || exit 70; [ -d "$1" ] && ! [ -L "$1" ] && exit 74; parent "$1"; rm -f "$1" || exit 72`
	if body.Fault_ = say(ctx, req.Vm, req.Auth, script, req.FilePath); body.Fault_ == nil {
		body.Res = new(types.DeleteFileInGuestResponse)
	}
	return body
}

func (m *GuestFileManager) MoveFileInGuest(ctx *Context, req *types.MoveFileInGuest) soap.HasFault {
	body := new(methods.MoveFileInGuestBody)
	const script = shellWords + `
exists "$1" || exit 70; [ -d "$1" ] && exit 74; [ -d "$2" ] && exit 71
[ "$3" = false ] && exists "$2" && exit 71; parent "$1"; parent "$2"; mv -f "$1" "$2" || exit 72`
	overwrite := strconv.FormatBool(req.Overwrite)
	if body.Fault_ = say(ctx, req.Vm, req.Auth, script, req.SrcFilePath, req.DstFilePath, overwrite); body.Fault_ == nil {
		body.Res = new(types.MoveFileInGuestResponse)
	}
	return body
}

func say(
	ctx *Context, vm types.ManagedObjectReference, auth types.BaseGuestAuthentication, script string, args ...string,
) *soap.Fault {
	l, fault := logIn(ctx, vm, auth)
	if fault == nil {
		_, fault = l.say(script, 0, args...)
	}
	return fault
}

// ListFilesInGuest lists a folder with `.` and `..`, as a real one does. A file's own name is the whole path.
func (m *GuestFileManager) ListFilesInGuest(ctx *Context, req *types.ListFilesInGuest) soap.HasFault {
	body := new(methods.ListFilesInGuestBody)
	matches, err := regexp.Compile(req.MatchPattern)
	if err != nil {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "matchPattern"})
		return body
	}
	l, fault := logIn(ctx, req.Vm, req.Auth)
	var all []types.GuestFileInfo
	if fault == nil {
		all, fault = l.stat(req.FilePath)
	}
	if body.Fault_ = fault; fault != nil {
		return body
	}
	var found []types.GuestFileInfo
	for _, file := range all {
		if matches.MatchString(path.Base(file.Path)) {
			found = append(found, file)
		}
	}
	limit := int(req.MaxResults)
	if limit == 0 {
		limit = 50
	}
	found = found[min(int(req.Index), len(found)):]
	shown := found[:min(limit, len(found))]
	body.Res = &types.ListFilesInGuestResponse{
		Returnval: types.GuestListFileInfo{Files: shown, Remaining: int32(len(found) - len(shown))},
	}
	return body
}

// stat is of a file, or of all that is in a folder.
func (l *login) stat(file string) ([]types.GuestFileInfo, *soap.Fault) {
	const script = shellWords + `
exists "$1" || exit 70
show() { stat -c '%F|%s|%Y|%X|%u|%g|%a' "$1" | tr '\n' '\0'; printf '%s\0%s\0' "$(readlink "$1")" "$2"; }
if [ -d "$1" ]; then
	[ -r "$1" ] && cd "$1" || exit 72
	for name in . .. .[!.]* ..?* *; do exists "$name" && show "$name" "$name"; done
else show "$1" "$1"; fi
exit 0`
	said, fault := l.say(script, 0, file)
	if fault != nil {
		return nil, fault
	}
	words := strings.Split(said, "\x00")
	var files []types.GuestFileInfo
	for ; len(words) > 3-1 && words[0] != ""; words = words[3:] {
		files = append(files, fileInfo(strings.Split(words[0], "|"), words[1], words[2]))
	}
	return files, nil
}

func fileInfo(fields []string, target, name string) types.GuestFileInfo {
	number := func(i int, base int) int64 {
		value, _ := strconv.ParseInt(fields[i], base, 64)
		return value
	}
	moment := func(i int) *time.Time {
		value := time.Unix(number(i, 10), 0).UTC()
		return &value
	}
	kind := types.GuestFileTypeFile
	switch fields[0] {
	case "directory":
		kind = types.GuestFileTypeDirectory
	case "symbolic link":
		kind = types.GuestFileTypeSymlink
	}
	owner, group := int32(number(4, 10)), int32(number(5, 10))
	return types.GuestFileInfo{
		Path: name, Type: string(kind), Size: number(1, 10),
		Attributes: &types.GuestPosixFileAttributes{
			GuestFileAttributes: types.GuestFileAttributes{
				ModificationTime: moment(2), AccessTime: moment(3), SymlinkTarget: target,
			},
			OwnerId: &owner, GroupId: &group, Permissions: number(6, 8),
		},
	}
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}
