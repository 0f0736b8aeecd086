// A machine's guest is a container of podman's: this stands for the simulator's own file of this name.
//
// Which image it is made of is in the machine's extraConfig, as `RUN.container`; a machine without that has no guest, and
// its tools never run. A machine that a client creates has the guest that main.go chose. What is in /run and in /tmp is
// lost with the power, as it is in a real guest; all else stays. The boot id is the host's, however often it boots.

package simulator

import (
	"bytes"
	"fmt"
	"log"
	"os/exec"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

const runContainer = "RUN.container"

// Guests is set by main.go before the first client comes.
var Guests struct {
	Image    string            // of machines that clients create; none if empty
	Accounts map[string]string // passwords of users, in all guests
}

type container struct {
	image string // empty if there is no guest
	id    string // empty until the machine is first powered on

	isPaused  bool
	isWarm    bool // made of what a snapshot with memory kept, so it doesn't boot
	hasBooted bool

	processes processTable
}

// podman returns what it said; what went wrong is in the error.
func podman(args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("podman", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func podmanLogged(args ...string) {
	if _, err := podman(args...); err != nil {
		log.Print(err)
	}
}

func (c *container) choose(vm *VirtualMachine) {
	for _, option := range vm.Config.ExtraConfig {
		value := option.GetOptionValue()
		if value.Key == runContainer && c.image == "" {
			c.image = value.Value.(string)
		}
	}
}

// start is called when the machine is powered on, or goes on after it was suspended.
func (c *container) start(vm *VirtualMachine) {
	if c.choose(vm); c.image == "" {
		return
	}
	if err := c.run(); err != nil {
		log.Printf("%s: %s", vm.Name, err)
		return
	}
	showTools(vm, true)
}

func (c *container) run() (err error) {
	if c.isPaused {
		_, err = podman("unpause", c.id)
		c.isPaused = err != nil
		return err
	}
	if err = c.create(); err != nil {
		return err
	}
	if _, err = podman("start", c.id); err != nil {
		return err
	}
	if !c.isWarm && c.hasBooted {
		err = exec.Command("runc", "exec", c.id, "sh", "-c", "rm -rf /run/* /tmp/*").Run()
	}
	c.isWarm, c.hasBooted = false, true
	return err
}

func (c *container) create() (err error) {
	if c.id == "" {
		// It would put file systems on /run and /tmp for what looks like systemd, and those can't be kept.
		c.id, err = podman("create", "--systemd", "false", c.image, "/sbin/init")
	}
	return err
}

// stop cuts the power.
func (c *container) stop(vm *VirtualMachine) {
	if c.id == "" {
		return
	}
	if c.isPaused {
		podmanLogged("unpause", c.id)
		c.isPaused = false
	}
	podmanLogged("stop", "--time", "0", c.id)
	c.processes.clear()
	showTools(vm, false)
}

// pause is called when the machine is suspended.
func (c *container) pause(vm *VirtualMachine) {
	if c.id != "" {
		podmanLogged("pause", c.id)
		c.isPaused = true
		showTools(vm, false)
	}
}

// remove is called when the machine is destroyed, and for all machines at the end.
func (c *container) remove(vm *VirtualMachine) {
	if c.id != "" {
		c.stop(vm)
		podmanLogged("rm", "--force", c.id)
		c.id = ""
	}
	images.sweep()
}

// become makes it a new container of what a snapshot kept; its processes are lost.
func (c *container) become(vm *VirtualMachine, kept *keptState) {
	c.remove(vm)
	c.of(kept)
}

// of gives it what a snapshot kept, at once: so the image stays for as long as it is needed.
func (c *container) of(kept *keptState) {
	c.image, c.isWarm, c.hasBooted = kept.image, kept.hasMemory, kept.isOwn
	if c.image != "" {
		if err := c.create(); err != nil {
			log.Print(err)
		}
	}
}

func showTools(vm *VirtualMachine, running bool) {
	status, state, heartbeat := types.VirtualMachineToolsRunningStatusGuestToolsNotRunning, "notRunning",
		types.ManagedEntityStatusGray
	tools := types.VirtualMachineToolsStatusToolsNotRunning
	if running {
		status, state = types.VirtualMachineToolsRunningStatusGuestToolsRunning, "running"
		heartbeat, tools = types.ManagedEntityStatusGreen, types.VirtualMachineToolsStatusToolsOk
	}
	guest := *vm.Guest
	guest.ToolsStatus, guest.ToolsRunningStatus, guest.GuestState = tools, string(status), state
	guest.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsUnmanaged)
	guest.GuestOperationsReady, guest.HostName = types.NewBool(running), "guest"
	summary := *vm.Summary.Guest
	summary.ToolsStatus, summary.ToolsRunningStatus = tools, string(status)
	Map.Update(vm, []types.PropertyChange{
		{Name: "guest", Val: guest},
		{Name: "summary.guest", Val: summary},
		{Name: "guestHeartbeatStatus", Val: heartbeat},
		{Name: "summary.quickStats.guestHeartbeatStatus", Val: heartbeat},
	})
}

// imageStore knows the images that nobody asks for any more, but which containers may still need.
type imageStore struct {
	mu      sync.Mutex
	kept    int
	unasked []string
}

var images imageStore

func (s *imageStore) commit(id string) (string, error) {
	s.mu.Lock()
	s.kept++
	name := fmt.Sprintf("kept-%d", s.kept)
	s.mu.Unlock()
	_, err := podman("commit", "--quiet", "--squash", "--pause", id, name)
	return name, err
}

func (s *imageStore) forget(name string) {
	s.mu.Lock()
	s.unasked = append(s.unasked, name)
	s.mu.Unlock()
	s.sweep()
}

func (s *imageStore) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var needed []string
	for _, name := range s.unasked {
		if _, err := podman("rmi", name); err != nil {
			needed = append(needed, name)
		}
	}
	s.unasked = needed
}
