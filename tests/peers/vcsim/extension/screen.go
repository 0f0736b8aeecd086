package simulator

import (
	"image"
	"image/png"
	"path"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// A dark screen, in a file beside the machine's own.

const screenName = "screen-0.png"

func (vm *VirtualMachine) CreateScreenshotTask(req *types.CreateScreenshot_Task) soap.HasFault {
	task := CreateTask(vm, "createScreenshot", func(*Task) (types.AnyType, types.BaseMethodFault) {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			return nil, &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: vm.Runtime.PowerState,
			}
		}
		file, fault := vm.createFile(vm.Config.Files.VmPathName, screenName, false)
		if fault != nil {
			return nil, fault
		}
		defer file.Close()
		if err := png.Encode(file, image.NewGray(image.Rect(0, 0, 720, 400))); err != nil {
			return nil, &types.FileFault{File: screenName}
		}
		var name object.DatastorePath
		name.FromString(vm.Config.Files.VmPathName)
		name.Path = path.Join(path.Dir(name.Path), screenName)
		return name.String(), nil
	})
	return &methods.CreateScreenshot_TaskBody{Res: &types.CreateScreenshot_TaskResponse{Returnval: task.Run()}}
}
