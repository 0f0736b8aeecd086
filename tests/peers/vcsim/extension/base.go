package simulator

import (
	"errors"
	"sort"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// The machine to clone, and its snapshot.
const (
	BaseMachine  = "linux"
	BaseSnapshot = "installed"
)

// BeginGuests adds the base machine, and gives guests to all machines that are made from now on.
func BeginGuests(image string, accounts map[string]string) error {
	Guests.Accounts = accounts
	machines := Map.All("VirtualMachine")
	sort.Slice(machines, func(i, j int) bool { return machines[i].Entity().Name < machines[j].Entity().Name })
	like := machines[0].(*VirtualMachine)
	devices := like.Config.Hardware.Device
	like.Config.Hardware.Device = copied(devices)
	body := like.ShippedCloneVMTask(internalContext, &types.CloneVM_Task{
		Folder: *like.Parent,
		Name:   BaseMachine,
		Spec: types.VirtualMachineCloneSpec{Config: &types.VirtualMachineConfigSpec{
			ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: runContainer, Value: image}},
		}},
	})
	like.Config.Hardware.Device = devices
	task := Map.Get(body.(*methods.CloneVM_TaskBody).Res.Returnval).(*Task)
	if task.Info.Error != nil {
		return errors.New(task.Info.Error.LocalizedMessage)
	}
	base := Map.Get(task.Info.Result.(types.ManagedObjectReference)).(*VirtualMachine)
	base.CreateSnapshotTask(&types.CreateSnapshot_Task{This: base.Self, Name: BaseSnapshot})
	Guests.Image = image
	return nil
}

// EndGuests leaves no container.
func EndGuests() {
	podmanLogged("rm", "--force", "--all", "--time", "0")
	for _, machine := range Map.All("VirtualMachine") {
		machine.(*VirtualMachine).run.id = ""
	}
}
