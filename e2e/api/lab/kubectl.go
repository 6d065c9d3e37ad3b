package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Relative to the directory of the tests, in which `go test` runs them.
const shippedManifests = "../../webhook-config/files.yaml"

// Result is what a user sees of a kubectl call.
type Result struct {
	Stdout, Stderr string
	// Succeeded is kubectl's exit code 0.
	Succeeded bool
	// Code is the exit code.
	Code int
}

// Kubectl runs the real kubectl as administrator, with stdin as its input.
func (c *Cluster) Kubectl(stdin string, arguments ...string) (Result, error) {
	return c.KubectlWith(c.kubeconfig(0), stdin, arguments...)
}

// KubectlWith runs kubectl with a kubeconfig of one's own.
func (c *Cluster) KubectlWith(kubeconfig, stdin string, arguments ...string) (Result, error) {
	command := exec.Command(filepath.Join(c.binaries, "kubectl"), arguments...)
	command.Env = []string{"PATH=" + c.plugins() + ":" + os.Getenv("PATH"), "HOME=" + c.directory, "KUBECONFIG=" + kubeconfig}
	command.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, err
	}
	return Result{stdout.String(), stderr.String(), err == nil, command.ProcessState.ExitCode()}, nil
}

// plugins is the directory in which kubectl finds pinhole as its plugin.
func (c *Cluster) plugins() string { return filepath.Join(c.directory, "plugins") }

// installPlugin does what docs/kubectl-plugin.md tells users to.
func (c *Cluster) installPlugin() error {
	if err := os.Mkdir(c.plugins(), 0o755); err != nil {
		return err
	}
	for _, name := range []string{"kubectl-pinhole", "kubectl_complete-pinhole"} {
		if err := os.Symlink(c.pinhole, filepath.Join(c.plugins(), name)); err != nil {
			return err
		}
	}
	return nil
}

// admin runs a kubectl call that must succeed.
func (c *Cluster) admin(stdin string, arguments ...string) error {
	result, err := c.Kubectl(stdin, arguments...)
	if err == nil && !result.Succeeded {
		err = errors.New(result.Stderr)
	}
	if err != nil {
		return fmt.Errorf("kubectl %s: %w", strings.Join(arguments, " "), err)
	}
	return nil
}
