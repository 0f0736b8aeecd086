package simulator

import (
	"bufio"
	"errors"
	"log"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// KeepsEndedFor is how long it is known how a program ended. Source: open-vm-tools, vixTools.c.
var KeepsEndedFor = 5 * time.Minute

// process is types.GuestProcessInfo, which would leave out an exit status of 0.
type process struct {
	Name      string     `xml:"name"`
	Pid       int64      `xml:"pid"`
	Owner     string     `xml:"owner"`
	CmdLine   string     `xml:"cmdLine"`
	StartTime time.Time  `xml:"startTime"`
	EndTime   *time.Time `xml:"endTime,omitempty"`
	ExitCode  *int32     `xml:"exitCode,omitempty"`
}

// ListProcessesInGuestResponse is of this name in the answer.
type ListProcessesInGuestResponse struct {
	Returnval []process `xml:"returnval,omitempty"`
}

type listProcessesInGuestBody struct {
	Res    *ListProcessesInGuestResponse
	Fault_ *soap.Fault
}

func (b *listProcessesInGuestBody) Fault() *soap.Fault { return b.Fault_ }

// processTable has the programs that were started by StartProgramInGuest since the guest booted.
type processTable struct {
	mu      sync.Mutex
	started map[int64]*process
}

func (t *processTable) add(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.started == nil {
		t.started = make(map[int64]*process)
	}
	t.started[p.Pid] = p
}

func (t *processTable) end(p *process, status int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ended := time.Now().UTC().Truncate(time.Second)
	p.EndTime, p.ExitCode = &ended, &status
}

func (t *processTable) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started = nil
}

func (t *processTable) known() map[int64]process {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[int64]process)
	for pid, p := range t.started {
		if p.EndTime != nil && time.Since(*p.EndTime) > KeepsEndedFor {
			delete(t.started, pid)
			continue
		}
		all[pid] = *p
	}
	return all
}

// StartProgramInGuest makes a command line of program and arguments, as VMware's tools do, which a shell reads.
func (m *GuestProcessManager) StartProgramInGuest(ctx *Context, req *types.StartProgramInGuest) soap.HasFault {
	body := new(methods.StartProgramInGuestBody)
	l, fault := logIn(ctx, req.Vm, req.Auth)
	spec, ok := req.Spec.(*types.GuestProgramSpec)
	if fault == nil && !ok {
		fault = Fault("", &types.InvalidArgument{InvalidProperty: "spec"})
	}
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	pid, fault := l.launch(spec)
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.StartProgramInGuestResponse{Returnval: pid}
	}
	return body
}

func (l *login) launch(spec *types.GuestProgramSpec) (int64, *soap.Fault) {
	const script = `
[ -f "$1" ] || { echo 70; exit; }
[ -x "$1" ] || { echo 72; exit; }
cd "${3:-$HOME}" 2>/dev/null || { echo 73; exit; }
echo "pid $$"
exec sh -c "$2" </dev/null >/dev/null 2>&1`
	program := strings.Trim(spec.ProgramPath, `"`)
	line := strings.TrimSpace(`"` + program + `" ` + spec.Arguments)
	cmd := l.exec(spec.EnvVariables, script, program, line, spec.WorkingDirectory)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		log.Print(err)
		return 0, faultOf(-1, program, 0)
	}
	started := time.Now().UTC().Truncate(time.Second)
	said, _ := bufio.NewReader(stdout).ReadString('\n')
	said = strings.TrimSpace(said)
	pid, err := strconv.ParseInt(strings.TrimPrefix(said, "pid "), 10, 64)
	if !strings.HasPrefix(said, "pid ") || err != nil {
		_ = cmd.Wait()
		status, _ := strconv.Atoi(said)
		if status == 0 {
			log.Printf("runc exec: %s", complaints.String())
		} else if status == notADirectory {
			program = spec.WorkingDirectory
		}
		return 0, faultOf(status, program, 0)
	}
	p := &process{Name: path.Base(program), Pid: pid, Owner: l.user, CmdLine: line, StartTime: started}
	l.vm.run.processes.add(p)
	go func() { l.vm.run.processes.end(p, statusOf(cmd.Wait())) }()
	return pid, nil
}

// statusOf is -1 where a signal ended the program, as VMware's tools say.
func statusOf(err error) int32 {
	if err == nil {
		return 0
	}
	var failed *exec.ExitError
	if errors.As(err, &failed) && failed.ExitCode() < 128 {
		return int32(failed.ExitCode())
	}
	return -1
}

func (m *GuestProcessManager) ListProcessesInGuest(ctx *Context, req *types.ListProcessesInGuest) soap.HasFault {
	body := new(listProcessesInGuestBody)
	l, fault := logIn(ctx, req.Vm, req.Auth)
	if body.Fault_ = fault; fault != nil {
		return body
	}
	all := l.vm.run.processes.known()
	isKnown := len(req.Pids) > 0
	for _, pid := range req.Pids {
		_, ok := all[pid]
		isKnown = isKnown && ok
	}
	if !isKnown {
		if body.Fault_ = l.lookAround(all); body.Fault_ != nil {
			return body
		}
	}
	asked := make(map[int64]bool)
	for _, pid := range req.Pids {
		asked[pid] = true
	}
	body.Res = new(ListProcessesInGuestResponse)
	for pid, p := range all {
		if len(asked) == 0 || asked[pid] {
			body.Res.Returnval = append(body.Res.Returnval, p)
		}
	}
	return body
}

// lookAround adds what runs in the guest, and was not started from outside.
func (l *login) lookAround(all map[int64]process) *soap.Fault {
	const script = `
for p in /proc/[0-9]*; do
	[ "${p#/proc/}" = $$ ] && continue
	s=$(stat -c '%U|%Y' $p 2>/dev/null) && printf '%s|%s|%s\n' ${p#/proc/} "$s" "$(tr '\0\n' '  ' <$p/cmdline)"
done
exit 0`
	said, fault := l.say(script, 0, "")
	if fault != nil {
		return fault
	}
	for _, line := range strings.Split(said, "\n") {
		fields := strings.SplitN(line, "|", 4)
		if len(fields) < 4 {
			continue
		}
		pid, _ := strconv.ParseInt(fields[0], 10, 64)
		if p, ok := all[pid]; ok && p.EndTime == nil {
			continue
		}
		since, _ := strconv.ParseInt(fields[2], 10, 64)
		line := strings.TrimSpace(fields[3])
		name, _, _ := strings.Cut(line, " ")
		all[pid] = process{
			Name: path.Base(name), Pid: pid, Owner: fields[1], CmdLine: line, StartTime: time.Unix(since, 0).UTC(),
		}
	}
	return nil
}

// TerminateProcessInGuest asks it to end, and kills what does not within 5 s.
func (m *GuestProcessManager) TerminateProcessInGuest(
	ctx *Context, req *types.TerminateProcessInGuest,
) soap.HasFault {
	body := new(methods.TerminateProcessInGuestBody)
	const script = `
[ -d /proc/$1 ] || exit 76
kill -TERM $1 || exit 77
for i in $(seq 50); do
	s=$(cut -d ' ' -f 3 /proc/$1/stat 2>/dev/null) && [ "$s" != Z ] || exit 0
	sleep 0.1
done
kill -KILL $1
exit 0`
	l, fault := logIn(ctx, req.Vm, req.Auth)
	if fault == nil {
		_, fault = l.say(script, req.Pid, strconv.FormatInt(req.Pid, 10))
	}
	if body.Fault_ = fault; fault == nil {
		body.Res = new(types.TerminateProcessInGuestResponse)
	}
	return body
}
