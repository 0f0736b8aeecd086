// A vCenter or an ESX host of VMware's in memory: govmomi's simulator, for one test.
//
// The first line of standard input is JSON, see `settings`; the answer, a line of JSON with the port and the names, says
// that it serves. Then `away` makes it refuse connections and forget all sessions, as one that restarts, and `back` serves
// again, with the same machines; each is answered by itself. It ends when its standard input or its parent does.
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
)

type settings struct {
	Kind           string // vpx or esx
	Address        string // to listen at
	User, Password string
	Cert, Key      string // files
	Image          string // of the guests, for podman; empty if there are to be none
	Accounts       map[string]string
}

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	parent := os.Getppid()
	lines := bufio.NewScanner(os.Stdin)
	if !lines.Scan() {
		log.Fatal("no settings")
	}
	var chosen settings
	must(json.Unmarshal(lines.Bytes(), &chosen))

	model := simulator.VPX()
	if chosen.Kind == "esx" {
		model = simulator.ESX()
	}
	model.Autostart = false
	must(model.Create())
	defer model.Remove() // the folders of its datastores
	if chosen.Image != "" {
		defer simulator.EndGuests()
		must(simulator.BeginGuests(chosen.Image, chosen.Accounts))
	}

	front := newFront(model, chosen)
	must(json.NewEncoder(os.Stdout).Encode(map[string]any{"port": front.port}))

	commands := make(chan string)
	go func() {
		for lines.Scan() {
			commands <- lines.Text()
		}
		close(commands)
	}()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	for os.Getppid() == parent {
		select {
		case command, isOpen := <-commands:
			if !isOpen {
				return
			}
			front.obey(command)
			fmt.Println(command)
		case <-ended:
			return
		case <-time.After(time.Second):
		}
	}
}

// front is what can be seen from outside: the simulator's own server can't come back on the port that it had.
type front struct {
	model   *simulator.Model
	address string
	port    int
	tls     *tls.Config
	server  *http.Server
}

func newFront(model *simulator.Model, chosen settings) *front {
	certificate, err := tls.LoadX509KeyPair(chosen.Cert, chosen.Key)
	must(err)
	f := &front{model: model, tls: &tls.Config{Certificates: []tls.Certificate{certificate}}}
	listener, err := net.Listen("tcp", chosen.Address)
	must(err)
	f.address, f.port = listener.Addr().String(), listener.Addr().(*net.TCPAddr).Port

	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(chosen.User, chosen.Password)}
	model.Service.TLS = f.tls.Clone()
	model.Service.NewServer().Close() // it sets up what answers

	f.serve(listener)
	return f
}

func (f *front) serve(listener net.Listener) {
	f.server = &http.Server{Handler: f.model.Service.ServeMux, ErrorLog: log.Default()}
	go func(server *http.Server) { _ = server.Serve(tls.NewListener(listener, f.tls)) }(f.server)
}

func (f *front) obey(command string) {
	switch command {
	case "away":
		_ = f.server.Close()
		simulator.ForgetSessions()
	case "back":
		listener, err := net.Listen("tcp", f.address)
		must(err)
		f.serve(listener)
	default:
		log.Fatalf("unknown command %q", command)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
