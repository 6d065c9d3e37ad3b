// Package lab runs Kubernetes control planes and webhook replicas for the tests, in namespaces of their own.
//
// The whole test binary moves into a new network, mount and process namespace before anything starts. The host's network
// is neither used nor changed, temporary files live in memory that only this process tree sees, and when the test binary
// ends, in whatever way, the kernel ends every process that it started.
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

const (
	insideVariable = "PINHOLE_E2E_INSIDE"
	// Mounted over in our own mount namespace only. Unlike /tmp it never holds a checkout or the binary under test.
	scratch = "/dev/shm"
	// Holds the lock that programs of the host take before they write iptables rules.
	runtimeState = "/run"
)

// EnterSandbox moves the calling test binary into its sandbox by executing it again, and returns once inside.
func EnterSandbox() error {
	if os.Getenv(insideVariable) != "" {
		return furnish()
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("the command `ip` is missing: install the package iproute2")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return errors.New("the command `unshare` is missing: install the package util-linux")
	}
	itself, err := os.Executable()
	if err != nil {
		return err
	}
	// Dies with `go test`, even when that is killed: the signal is asked for by this thread and survives the exec.
	runtime.LockOSThread()
	const setParentDeathSignal = 1
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, setParentDeathSignal, uintptr(syscall.SIGKILL), 0); errno != 0 {
		return fmt.Errorf("prctl(PR_SET_PDEATHSIG): %w", errno)
	}
	arguments := []string{"unshare", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"}
	if os.Geteuid() != 0 {
		// An ordinary user is root in a user namespace, where the kernel allows those.
		arguments = append(arguments, "--map-root-user")
	}
	arguments = append(append(arguments, "--", itself), os.Args[1:]...)
	// Where the kernel does not allow this, unshare says so and ends with a failure.
	err = syscall.Exec(unshare, arguments, append(os.Environ(), insideVariable+"=1"))
	return fmt.Errorf("%s: %w", strings.Join(arguments, " "), err)
}

// furnish gives the new namespaces a loopback device and scratch space.
func furnish() error {
	for _, directory := range []string{scratch, runtimeState} {
		if err := syscall.Mount("tmpfs", directory, "tmpfs", 0, "mode=1777"); err != nil {
			return fmt.Errorf("mounting scratch space on %s: %w", directory, err)
		}
	}
	if err := os.Setenv("TMPDIR", scratch); err != nil {
		return err
	}
	return run("ip link set lo up")
}

// addAddress makes an address local to the sandbox, so that a server can listen on it. The device is the loopback, which
// every kernel has; the address is not a loopback address, which the API server would not accept in an EndpointSlice.
func addAddress(address string) error {
	return run("ip address add " + address + "/32 dev lo")
}

func run(command string) error {
	words := strings.Fields(command)
	if output, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, output)
	}
	return nil
}
