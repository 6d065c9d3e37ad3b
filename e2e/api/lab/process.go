package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Process is a server that the tests started. Its output goes to a file, the end of which every error quotes.
type Process struct {
	Name    string
	logPath string
	command *exec.Cmd
	done    chan struct{}
	err     error
}

func startProcess(name, directory string, environment []string, program string, arguments ...string) (*Process, error) {
	logPath := filepath.Join(directory, name+".log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command(program, arguments...)
	command.Dir = directory
	command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + directory}, environment...)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	process := &Process{Name: name, logPath: logPath, command: command, done: make(chan struct{})}
	go func() {
		process.err = command.Wait()
		close(process.done)
	}()
	return process, nil
}

// Exited says whether the process is gone.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Resident is the memory that the process has, in bytes, and 0 once it has ended.
func (p *Process) Resident() uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.command.Process.Pid))
	var total, resident uint64
	if _, scanError := fmt.Sscan(string(text), &total, &resident); err != nil || scanError != nil {
		return 0
	}
	return resident * uint64(os.Getpagesize())
}

// Stop asks the process to end and waits for it; an exit code other than 0, or none in time, is an error.
func (p *Process) Stop(patience time.Duration) error {
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s was gone before it was asked to stop: %w\n%s", p.Name, err, p.LogTail())
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s did not end cleanly: %w\n%s", p.Name, p.err, p.LogTail())
		}
		return nil
	case <-time.After(patience):
		p.Kill()
		return fmt.Errorf("%s still ran %s after SIGTERM\n%s", p.Name, patience, p.LogTail())
	}
}

// Kill ends the process without giving it a chance to say goodbye.
func (p *Process) Kill() {
	_ = p.command.Process.Kill()
	<-p.done
}

// Log is all that the process has written so far.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// LogTail is the end of the log, for error messages.
func (p *Process) LogTail() string {
	lines := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	if 20 < len(lines) {
		lines = lines[len(lines)-20:]
	}
	for index, line := range lines {
		if 300 < len(line) {
			lines[index] = line[:300] + "..."
		}
	}
	return fmt.Sprintf("the last lines of %s:\n  %s", p.Name, strings.Join(lines, "\n  "))
}

// Poll calls check until it returns nil, and gives up after patience with check's last complaint.
func Poll(patience time.Duration, check func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if deadline.Before(time.Now()) {
			return fmt.Errorf("not within %s: %w", patience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
