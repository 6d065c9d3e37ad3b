package lab

import (
	"io"
	"net"
	"sync"
)

// Gate stands between a replica and the API server and lets nothing through until it is opened.
type Gate struct {
	// Address is where the replica finds the gate.
	Address string
	opened  chan struct{}
	once    sync.Once
}

// NewGate makes a closed gate before an API server of the cluster.
func (c *Cluster) NewGate(server int) (*Gate, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	gate := &Gate{Address: listener.Addr().String(), opened: make(chan struct{})}
	target := c.serverAddress(server) + ":6443"
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				<-gate.opened
				upstream, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer upstream.Close()
				go func() {
					_, _ = io.Copy(upstream, connection)
					upstream.Close()
				}()
				_, _ = io.Copy(connection, upstream)
			}()
		}
	}()
	return gate, nil
}

// Open lets everything through from now on.
func (g *Gate) Open() { g.once.Do(func() { close(g.opened) }) }
