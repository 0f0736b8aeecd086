package simulator

import (
	"log"
	"sync"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The simulator's own methods keep the tree of snapshots. Before them, or after them, these do to containers and to the
// power what a real one does to disks, memory and power. Of memory there is none: a snapshot "with memory" keeps /run and
// /tmp, and after a revert to it the machine is on, but no process of the snapshot's moment runs.

type keptState struct {
	image     string // empty if there is no guest
	isOwn     bool   // the image was made for it
	hasMemory bool   // and so the machine was on
}

var kept = struct {
	sync.Mutex
	of map[types.ManagedObjectReference]*keptState
}{of: make(map[types.ManagedObjectReference]*keptState)}

func keptBy(snapshot types.ManagedObjectReference) *keptState {
	kept.Lock()
	defer kept.Unlock()
	return kept.of[snapshot]
}

func (vm *VirtualMachine) CreateSnapshotTask(req *types.CreateSnapshot_Task) soap.HasFault {
	state := &keptState{hasMemory: req.Memory && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn}
	vm.run.choose(vm)
	state.image = vm.run.image
	if vm.run.id != "" {
		image, err := images.commit(vm.run.id)
		if err != nil {
			log.Print(err)
			task := CreateTask(vm, "createSnapshot", func(*Task) (types.AnyType, types.BaseMethodFault) {
				return nil, new(types.SnapshotFault)
			})
			return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: task.Run()}}
		}
		state.image, state.isOwn = image, true
	}
	body := vm.ShippedCreateSnapshotTask(req)
	task := Map.Get(body.(*methods.CreateSnapshot_TaskBody).Res.Returnval).(*Task)
	snapshot := task.Info.Result.(types.ManagedObjectReference)
	if !state.hasMemory {
		findSnapshotInTree(vm.Snapshot.RootSnapshotList, snapshot).State = types.VirtualMachinePowerStatePoweredOff
	}
	kept.Lock()
	defer kept.Unlock()
	kept.of[snapshot] = state
	return body
}

func (v *VirtualMachineSnapshot) RevertToSnapshotTask(ctx *Context, req *types.RevertToSnapshot_Task) soap.HasFault {
	vm := Map.Get(v.Vm).(*VirtualMachine)
	Map.WithLock(vm, func() { vm.revert(ctx, keptBy(v.Self), isTrue(req.SuppressPowerOn)) })
	return v.ShippedRevertToSnapshotTask(req)
}

func (vm *VirtualMachine) RevertToCurrentSnapshotTask(
	ctx *Context, req *types.RevertToCurrentSnapshot_Task,
) soap.HasFault {
	if vm.Snapshot != nil && vm.Snapshot.CurrentSnapshot != nil {
		vm.revert(ctx, keptBy(*vm.Snapshot.CurrentSnapshot), isTrue(req.SuppressPowerOn))
	}
	return vm.ShippedRevertToCurrentSnapshotTask(req)
}

func (vm *VirtualMachine) revert(ctx *Context, state *keptState, suppressPowerOn bool) {
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self})
	}
	vm.run.become(vm, state)
	if state.hasMemory && !suppressPowerOn {
		vm.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self})
	}
}

func (v *VirtualMachineSnapshot) RemoveSnapshotTask(ctx *Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	removed := []types.ManagedObjectReference{v.Self}
	vm := Map.Get(v.Vm).(*VirtualMachine)
	if tree := findSnapshotInTree(vm.Snapshot.RootSnapshotList, v.Self); tree != nil && req.RemoveChildren {
		removed = append(removed, allSnapshotsInTree(tree.ChildSnapshotList)...)
	}
	body := v.ShippedRemoveSnapshotTask(ctx, req)
	forget(removed)
	return body
}

func (vm *VirtualMachine) RemoveAllSnapshotsTask(ctx *Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	removed := vm.allSnapshots()
	body := vm.ShippedRemoveAllSnapshotsTask(ctx, req)
	forget(removed)
	return body
}

func (vm *VirtualMachine) DestroyTask(ctx *Context, req *types.Destroy_Task) soap.HasFault {
	removed := vm.allSnapshots()
	body := vm.ShippedDestroyTask(ctx, req)
	task := Map.Get(body.(*methods.Destroy_TaskBody).Res.Returnval).(*Task)
	if task.Info.Error == nil {
		forget(removed)
	}
	return body
}

func (vm *VirtualMachine) allSnapshots() []types.ManagedObjectReference {
	if vm.Snapshot == nil {
		return nil
	}
	return allSnapshotsInTree(vm.Snapshot.RootSnapshotList)
}

func forget(snapshots []types.ManagedObjectReference) {
	kept.Lock()
	defer kept.Unlock()
	for _, snapshot := range snapshots {
		if state := kept.of[snapshot]; state != nil && state.isOwn {
			images.forget(state.image)
		}
		delete(kept.of, snapshot)
	}
}

// CloneVMTask makes a machine whose guest has the files of the snapshot, or of the machine itself as it is now.
//
// A host of its own can't clone, as no real one can.
func (vm *VirtualMachine) CloneVMTask(ctx *Context, req *types.CloneVM_Task) soap.HasFault {
	if ctx.Map.IsESX() {
		return &methods.CloneVM_TaskBody{Fault_: Fault("", new(types.NotSupported))}
	}
	vm.run.choose(vm)
	state := &keptState{image: vm.run.image}
	if req.Spec.Snapshot != nil {
		taken := keptBy(*req.Spec.Snapshot)
		if taken == nil {
			return &methods.CloneVM_TaskBody{Fault_: Fault("", &types.ManagedObjectNotFound{Obj: *req.Spec.Snapshot})}
		}
		*state = keptState{image: taken.image, isOwn: taken.isOwn} // a clone boots, whatever the snapshot has
	} else if vm.run.id != "" {
		image, err := images.commit(vm.run.id)
		if err != nil {
			log.Print(err)
			return &methods.CloneVM_TaskBody{Fault_: Fault(err.Error(), new(types.FileFault))}
		}
		*state = keptState{image: image, isOwn: true}
		defer images.forget(image)
	}
	devices := vm.Config.Hardware.Device
	vm.Config.Hardware.Device = copied(devices) // the clone gets these, with files of its own
	body := vm.ShippedCloneVMTask(ctx, req)
	vm.Config.Hardware.Device = devices

	task := Map.Get(body.(*methods.CloneVM_TaskBody).Res.Returnval).(*Task)
	if task.Info.Error == nil {
		clone := Map.Get(task.Info.Result.(types.ManagedObjectReference)).(*VirtualMachine)
		clone.run.of(state)
	}
	return body
}

func copied(devices object.VirtualDeviceList) object.VirtualDeviceList {
	all := make(object.VirtualDeviceList, len(devices))
	for i, device := range devices {
		all[i] = device
		if disk, ok := device.(*types.VirtualDisk); ok {
			another := *disk
			if backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
				itsOwn := *backing
				another.Backing = &itsOwn
			}
			all[i] = &another
		}
	}
	return all
}

// CreateVMTask gives machines that clients create a guest.
func (f *Folder) CreateVMTask(ctx *Context, req *types.CreateVM_Task) soap.HasFault {
	if Guests.Image != "" {
		hasImage := false
		for _, option := range req.Config.ExtraConfig {
			hasImage = hasImage || option.GetOptionValue().Key == runContainer
		}
		if !hasImage {
			option := &types.OptionValue{Key: runContainer, Value: Guests.Image}
			req.Config.ExtraConfig = append(req.Config.ExtraConfig, option)
		}
	}
	return f.ShippedCreateVMTask(ctx, req)
}
