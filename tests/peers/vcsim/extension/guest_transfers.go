package simulator

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const guestPrefix = "/guestFile"

// transfer is what one URL is good for, once.
type transfer struct {
	login    *login
	file     string
	size     int64
	mode     int64
	isUpload bool
}

var transfers = struct {
	sync.Mutex
	of map[string]*transfer
}{of: make(map[string]*transfer)}

func offer(ctx *Context, t *transfer) string {
	token := uuid.New().String()
	transfers.Lock()
	defer transfers.Unlock()
	transfers.of[token] = t
	query := url.Values{"id": []string{strconv.Itoa(len(transfers.of))}, "token": []string{token}}
	// The host is for the client to fill in.
	return (&url.URL{Scheme: ctx.svc.Listen.Scheme, Host: "*", Path: guestPrefix, RawQuery: query.Encode()}).String()
}

func (m *GuestFileManager) InitiateFileTransferToGuest(
	ctx *Context, req *types.InitiateFileTransferToGuest,
) soap.HasFault {
	body := new(methods.InitiateFileTransferToGuestBody)
	const script = shellWords + `
[ -d "$1" ] && exit 74
if exists "$1"; then [ "$2" = true ] || exit 71; [ -w "$1" ] || exit 72; else parent "$1"; fi`
	l, fault := logIn(ctx, req.Vm, req.Auth)
	if fault == nil {
		_, fault = l.say(script, 0, req.GuestFilePath, strconv.FormatBool(req.Overwrite))
	}
	if body.Fault_ = fault; fault != nil {
		return body
	}
	t := &transfer{login: l, file: req.GuestFilePath, size: req.FileSize, isUpload: true, mode: 0o644}
	if posix, ok := req.FileAttributes.(*types.GuestPosixFileAttributes); ok && posix.Permissions != 0 {
		t.mode = posix.Permissions
	}
	body.Res = &types.InitiateFileTransferToGuestResponse{Returnval: offer(ctx, t)}
	return body
}

func (m *GuestFileManager) InitiateFileTransferFromGuest(
	ctx *Context, req *types.InitiateFileTransferFromGuest,
) soap.HasFault {
	body := new(methods.InitiateFileTransferFromGuestBody)
	const script = shellWords + `
[ -e "$1" ] || exit 70; [ -d "$1" ] && exit 74; [ -r "$1" ] || exit 72
stat -L -c '%F|%s|%Y|%X|%u|%g|%a' "$1"`
	l, fault := logIn(ctx, req.Vm, req.Auth)
	var said string
	if fault == nil {
		said, fault = l.say(script, 0, req.GuestFilePath)
	}
	if body.Fault_ = fault; fault != nil {
		return body
	}
	info := fileInfo(strings.Split(strings.TrimSpace(said), "|"), "", req.GuestFilePath)
	body.Res = &types.InitiateFileTransferFromGuestResponse{
		Returnval: types.FileTransferInformation{
			Attributes: info.Attributes,
			Size:       info.Size,
			Url:        offer(ctx, &transfer{login: l, file: req.GuestFilePath, size: info.Size}),
		},
	}
	return body
}

// ServeGuest handles the transfers themselves, as streams.
func ServeGuest(w http.ResponseWriter, r *http.Request) {
	token := r.URL.Query().Get("token")
	transfers.Lock()
	t := transfers.of[token]
	delete(transfers.of, token)
	transfers.Unlock()
	if t == nil || t.isUpload != (r.Method == http.MethodPut) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	move := t.download
	if t.isUpload {
		move = t.upload
	}
	if err := move(w, r); err != nil {
		log.Printf("%s %s: %s", r.Method, t.file, err)
		panic(http.ErrAbortHandler) // so the client sees that not all came
	}
}

func (t *transfer) upload(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength != t.size {
		w.WriteHeader(http.StatusInternalServerError)
		return nil
	}
	cmd := t.login.exec(nil, `cat >"$1" && chmod "$2" "$1"`, t.file, fmt.Sprintf("%o", t.mode))
	return through(cmd, func(stdin io.WriteCloser, _ io.Reader) error {
		if _, err := io.Copy(stdin, r.Body); err != nil {
			return err
		}
		return stdin.Close()
	})
}

func (t *transfer) download(w http.ResponseWriter, r *http.Request) error {
	cmd := t.login.exec(nil, `stat -L -c %s "$1" && exec cat "$1"`, t.file)
	return through(cmd, func(_ io.WriteCloser, stdout io.Reader) error {
		buffered := bufio.NewReaderSize(stdout, 1<<16)
		size, err := buffered.ReadString('\n')
		if err != nil {
			return err
		}
		w.Header().Set("Content-Length", strings.TrimSpace(size))
		_, err = io.Copy(w, buffered)
		return err
	})
}

// through ends the program where its streams break.
func through(cmd *exec.Cmd, use func(stdin io.WriteCloser, stdout io.Reader) error) error {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err = cmd.Start(); err != nil {
		return err
	}
	if err = use(stdin, stdout); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return cmd.Wait()
}
