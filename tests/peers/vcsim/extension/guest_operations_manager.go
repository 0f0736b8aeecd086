// Guest operations, as the user who logs in. This stands for the simulator's own file of this name, which has file transfers
// only. What `podman exec` would do is done by what that calls: in a third of the time.

package simulator

import (
	"errors"
	"log"
	"os/exec"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type GuestOperationsManager struct {
	mo.GuestOperationsManager
}

// The managers are not locked, so operations in several guests go on at the same time.

type GuestAuthManager struct {
	mo.GuestAuthManager
	nopLocker
}

type GuestFileManager struct {
	mo.GuestFileManager
	nopLocker
}

type GuestProcessManager struct {
	mo.GuestProcessManager
	nopLocker
}

func (m *GuestOperationsManager) init(r *Registry) {
	reference := func(kind, value string) *types.ManagedObjectReference {
		return &types.ManagedObjectReference{Type: kind, Value: value}
	}
	if m.FileManager == nil {
		m.FileManager = reference("GuestFileManager", "guestOperationsFileManager")
	}
	if m.ProcessManager == nil {
		m.ProcessManager = reference("GuestProcessManager", "guestOperationsProcessManager")
	}
	if m.AuthManager == nil {
		m.AuthManager = reference("GuestAuthManager", "guestOperationsAuthManager")
	}
	auth, file, process := new(GuestAuthManager), new(GuestFileManager), new(GuestProcessManager)
	auth.Self, file.Self, process.Self = *m.AuthManager, *m.FileManager, *m.ProcessManager
	r.Put(auth)
	r.Put(file)
	r.Put(process)
}

// login is somebody in a guest that can be operated.
type login struct {
	vm        *VirtualMachine
	container string
	user      string
}

func logIn(ctx *Context, ref types.ManagedObjectReference, auth types.BaseGuestAuthentication) (*login, *soap.Fault) {
	vm, ok := ctx.Map.Get(ref).(*VirtualMachine)
	if !ok {
		return nil, Fault("", &types.ManagedObjectNotFound{Obj: ref})
	}
	var found *login
	var fault *soap.Fault
	ctx.WithLock(vm, func() { // a guest that is being reverted is waited for
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			fault = Fault("The attempted operation cannot be performed in the current state", &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOn,
				ExistingState:  vm.Runtime.PowerState,
			})
		} else if vm.run.id == "" || vm.Guest.ToolsRunningStatus != "guestToolsRunning" {
			fault = Fault("The guest operations agent could not be contacted", new(types.GuestOperationsUnavailable))
		} else {
			found = &login{vm: vm, container: vm.run.id}
		}
	})
	if fault != nil {
		return nil, fault
	}
	account, ok := auth.(*types.NamePasswordAuthentication)
	if ok {
		var password string
		password, ok = Guests.Accounts[account.Username]
		ok = ok && password == account.Password
	}
	if !ok {
		return nil, Fault("Failed to authenticate with the guest operating system", new(types.InvalidGuestLogin))
	}
	found.user = account.Username
	return found, nil
}

// exec has su become the script's shell, so that has the number of a process, and only the rights, that the user's has.
func (l *login) exec(environment []string, script string, args ...string) *exec.Cmd {
	argv := []string{"exec"}
	for _, variable := range environment {
		argv = append(argv, "--env", variable)
	}
	argv = append(argv, l.container, "su", "-s", "/bin/sh", l.user, "-c", script, "sh")
	return exec.Command("runc", append(argv, args...)...)
}

// The exit statuses of our scripts.
const (
	fileNotFound = 70 + iota
	fileAlreadyExists
	cannotAccessFile
	notADirectory
	notAFile
	directoryNotEmpty
	processNotFound
	permissionDenied
)

func faultOf(status int, file string, pid int64) *soap.Fault {
	of := types.FileFault{File: file}
	switch status {
	case fileNotFound:
		return Fault("File "+file+" was not found", &types.FileNotFound{FileFault: of})
	case fileAlreadyExists:
		return Fault("The file "+file+" already exists", &types.FileAlreadyExists{FileFault: of})
	case cannotAccessFile:
		return Fault("Unable to access file "+file, &types.CannotAccessFile{FileFault: of})
	case notADirectory:
		return Fault(file+" is not a directory", &types.NotADirectory{FileFault: of})
	case notAFile:
		return Fault(file+" is not a file", &types.NotAFile{FileFault: of})
	case directoryNotEmpty:
		return Fault("The directory "+file+" is not empty", &types.DirectoryNotEmpty{FileFault: of})
	case processNotFound:
		return Fault("The guest process was not found", &types.GuestProcessNotFound{Pid: pid})
	case permissionDenied:
		return Fault("Permission to perform this operation was denied", new(types.GuestPermissionDenied))
	}
	return Fault("The guest operations agent could not be contacted", new(types.GuestOperationsUnavailable))
}

// say runs a script in the guest and gives its output. What is at fault is its first argument, or the process.
func (l *login) say(script string, pid int64, args ...string) (string, *soap.Fault) {
	out, err := l.exec(nil, script, args...).Output()
	if err == nil {
		return string(out), nil
	}
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		log.Print(err)
		return "", faultOf(-1, args[0], pid)
	}
	if failed.ExitCode() < fileNotFound || failed.ExitCode() > permissionDenied {
		log.Printf("in the guest, %q: %s: %s", args, err, failed.Stderr)
	}
	return "", faultOf(failed.ExitCode(), args[0], pid)
}

func (m *GuestAuthManager) ValidateCredentialsInGuest(
	ctx *Context, req *types.ValidateCredentialsInGuest,
) soap.HasFault {
	if _, fault := logIn(ctx, req.Vm, req.Auth); fault != nil {
		return &methods.ValidateCredentialsInGuestBody{Fault_: fault}
	}
	return &methods.ValidateCredentialsInGuestBody{Res: new(types.ValidateCredentialsInGuestResponse)}
}
