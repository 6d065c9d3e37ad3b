package lab

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Volume is a Secret as kubelet mounts it: each file is a link into the directory behind the link `..data`, and a change
// swaps that one link.
type Volume struct {
	Directory string
	version   int
}

// NewVolume makes an empty volume.
func (c *Cluster) NewVolume(name string) (*Volume, error) {
	volume := &Volume{Directory: filepath.Join(c.directory, "volume-"+name)}
	return volume, os.MkdirAll(volume.Directory, 0o755)
}

// Write replaces all files at once.
func (v *Volume) Write(files map[string][]byte) error {
	old := v.versionName()
	v.version++
	inside := func(names ...string) string { return filepath.Join(append([]string{v.Directory}, names...)...) }
	if err := os.Mkdir(inside(v.versionName()), 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(inside(v.versionName(), name), content, 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink(v.versionName(), inside("..data_tmp")); err != nil {
		return err
	}
	if err := os.Rename(inside("..data_tmp"), inside("..data")); err != nil {
		return err
	}
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), inside(name)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	present, err := os.ReadDir(v.Directory)
	if err != nil {
		return err
	}
	for _, each := range present {
		if _, wanted := files[each.Name()]; !wanted && !strings.HasPrefix(each.Name(), "..") {
			if err := os.Remove(inside(each.Name())); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(inside(old))
}

func (v *Volume) versionName() string { return fmt.Sprintf("..version_%d", v.version) }

// WritePair replaces the volume's certificate.
func (v *Volume) WritePair(pair Pair) error {
	return v.Write(map[string][]byte{"tls.crt": pair.Chain, "tls.key": pair.Key})
}

// MountSecret makes a volume of a Secret in the webhook's namespace, once that is there, and keeps it like the Secret,
// late by `lag`: each node's kubelet looks at a time of its own.
func (c *Cluster) MountSecret(secret, name string, lag time.Duration) (*Volume, error) {
	volume, err := c.NewVolume(name)
	if err != nil {
		return nil, err
	}
	var mounted map[string][]byte
	if err := Poll(time.Minute, func() error {
		mounted, err = c.secretData(secret)
		return err
	}); err != nil {
		return nil, err
	}
	if err := volume.Write(mounted); err != nil {
		return nil, err
	}
	go func() {
		for {
			time.Sleep(200 * time.Millisecond)
			now, err := c.secretData(secret)
			if err != nil || maps.EqualFunc(now, mounted, bytes.Equal) {
				continue
			}
			time.Sleep(lag)
			if volume.Write(now) == nil {
				mounted = now
			}
		}
	}()
	return volume, nil
}

func (c *Cluster) secretData(name string) (map[string][]byte, error) {
	var secret struct{ Data map[string][]byte }
	path := "/api/v1/namespaces/" + WebhookNamespace + "/secrets/" + name
	if err := c.Do(context.Background(), 0, http.MethodGet, path, nil, &secret); err != nil {
		return nil, err
	}
	return secret.Data, nil
}
