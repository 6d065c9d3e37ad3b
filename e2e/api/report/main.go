// Command report runs the Go tests of a directory and prints one line per test, the output of those that fail, and a
// closing line with the number of tests that passed and failed.
//
//	report NAME DIRECTORY [FLAG OF GO TEST]...
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "report NAME DIRECTORY [FLAG OF GO TEST]...")
		os.Exit(2)
	}
	suite, directory := os.Args[1], os.Args[2]
	// Prerequisites that are missing, and code that does not compile, show as a package that fails.
	command := exec.Command("go", append([]string{"test", "-json", "-count=1", "-timeout=20m", "./..."}, os.Args[3:]...)...)
	command.Dir = directory
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	events, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", suite, err)
		os.Exit(1)
	}
	passed, failed := summarise(bufio.NewScanner(events))
	err = command.Wait()
	if err != nil && failed == 0 {
		// Something other than a test went wrong, and was printed.
		failed = 1
	}
	fmt.Printf("%s: %d passed, %d failed\n", suite, passed, failed)
	if failed != 0 || passed == 0 {
		os.Exit(1)
	}
}

func summarise(lines *bufio.Scanner) (passed, failed int) {
	lines.Buffer(nil, 16<<20)
	output := map[string]*strings.Builder{}
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Println(lines.Text())
			continue
		}
		// A test's own name, without the package: there is one package of tests.
		name := e.Test
		switch e.Action {
		case "output", "build-output":
			if name == "" {
				name = e.Package
			}
			if output[name] == nil {
				output[name] = &strings.Builder{}
			}
			output[name].WriteString(e.Output)
		case "pass", "fail":
			if name == "" {
				if e.Action == "fail" && output[e.Package] != nil {
					fmt.Print(output[e.Package])
				}
				continue
			}
			if e.Action == "pass" {
				passed++
				fmt.Printf("ok    %6.1f s  %s\n", e.Elapsed, name)
			} else {
				failed++
				fmt.Printf("FAIL  %6.1f s  %s\n", e.Elapsed, name)
				if output[name] != nil {
					fmt.Print(output[name])
					fmt.Print(complaints(output[name].String()))
				}
			}
		case "build-fail":
			for _, text := range output {
				fmt.Print(text)
			}
		}
	}
	return passed, failed
}

// complaints are the lines in which a test itself says something, with their places, to be found below what its processes
// wrote, which can be long. They are empty where nothing stands between.
func complaints(output string) string {
	var said strings.Builder
	lines := strings.SplitAfter(output, "\n")
	for _, line := range lines {
		if isComplaint.MatchString(line) {
			said.WriteString(line[:min(len(line), 1000)])
		}
	}
	if len(lines) < 30 {
		return ""
	}
	return "It said:\n" + said.String()
}

var isComplaint = regexp.MustCompile(`^ +[a-z0-9_]+_test\.go:[0-9]+: `)
