// An OCI runtime for hosts without CAP_SYS_RESOURCE: it takes from a container's specification what such a host cannot
// give, then becomes the real runtime. Without it every privileged container fails ("unable to apply caps"), and with
// them kind's nodes and kube-proxy's pods.
//
// What it takes: the capability CAP_SYS_RESOURCE from every list, and a negative OOM score adjustment. On a host that has
// the capability it changes nothing. It starts the first `runc` of PATH that is not itself.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	missing    = "CAP_SYS_RESOURCE"
	missingBit = 24
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "runc-wrapper:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	able, err := hostHasIt()
	if err != nil {
		return err
	}
	if file, inside := specification(arguments); file != "" && !able {
		if err := rewrite(file, inside); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	runtime, err := runtimeBehind()
	if err != nil {
		return err
	}
	return syscall.Exec(runtime, append([]string{runtime}, arguments...), os.Environ())
}

// After one of these words, what looks like another is a container's name.
var commands = []string{
	"checkpoint", "create", "delete", "events", "exec", "features", "kill", "list", "pause", "ps", "restore", "resume", "run",
	"spec", "start", "state", "update",
}

// The file that describes the process to start, and whether that description is the whole file or its key `process`.
func specification(arguments []string) (file string, inside string) {
	command, bundle, process := "", ".", ""
	for index, argument := range arguments {
		next := ""
		if index+1 < len(arguments) {
			next = arguments[index+1]
		}
		switch {
		case command == "" && slices.Contains(commands, argument):
			command = argument
		case argument == "--bundle" || argument == "-b":
			bundle = next
		case strings.HasPrefix(argument, "--bundle="):
			bundle = strings.TrimPrefix(argument, "--bundle=")
		case argument == "--process" || argument == "-p":
			process = next
		case strings.HasPrefix(argument, "--process="):
			process = strings.TrimPrefix(argument, "--process=")
		}
	}
	switch command {
	case "create", "run":
		return filepath.Join(bundle, "config.json"), "process"
	case "exec":
		return process, ""
	}
	return "", ""
}

func rewrite(file, inside string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		return err
	}
	if inside == "" {
		if err := lower(whole); err != nil {
			return err
		}
	} else {
		var part map[string]json.RawMessage
		if err := json.Unmarshal(whole[inside], &part); err != nil {
			return err
		}
		if err := lower(part); err != nil {
			return err
		}
		if whole[inside], err = json.Marshal(part); err != nil {
			return err
		}
	}
	if text, err = json.Marshal(whole); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// Takes from the description of a process what this host cannot give.
func lower(process map[string]json.RawMessage) error {
	if raw, present := process["capabilities"]; present {
		var sets map[string][]string
		if err := json.Unmarshal(raw, &sets); err != nil {
			return err
		}
		for name, set := range sets {
			kept := []string{}
			for _, capability := range set {
				if capability != missing {
					kept = append(kept, capability)
				}
			}
			sets[name] = kept
		}
		text, err := json.Marshal(sets)
		if err != nil {
			return err
		}
		process["capabilities"] = text
	}
	if raw, present := process["oomScoreAdj"]; present {
		var score int
		if err := json.Unmarshal(raw, &score); err != nil {
			return err
		}
		if score < 0 {
			process["oomScoreAdj"] = json.RawMessage("0")
		}
	}
	return nil
}

// Whether the capability is in the bounding set: beyond that no process of this host can get one.
func hostHasIt() (bool, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	_, after, _ := strings.Cut(string(status), "CapBnd:")
	line, _, _ := strings.Cut(after, "\n")
	set, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return false, fmt.Errorf("/proc/self/status, CapBnd: %w", err)
	}
	return set&(1<<missingBit) != 0, nil
}

func runtimeBehind() (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	for _, directory := range filepath.SplitList(os.Getenv("PATH")) {
		candidate := filepath.Join(directory, "runc")
		info, err := os.Stat(candidate)
		if err == nil && !os.SameFile(info, self) && info.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("PATH=%s holds no runc besides this wrapper", os.Getenv("PATH"))
}
