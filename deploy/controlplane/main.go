// controlplane is a real Kubernetes API server for tests, in one process:
// embedded etcd, kube-apiserver (the released code, with CRDs, admission
// webhooks, RBAC, server-side apply) and the two controllers of
// kube-controller-manager that clients of custom resources rely on: garbage
// collection of owned objects and namespace deletion. There are no nodes,
// kubelets, schedulers or service accounts' tokens.
//
//	controlplane --data-dir DIR [--port N]
//
// It makes its own certificates, writes DIR/admin.kubeconfig, and prints one
// line "READY <url> <seconds>" on stdout once /readyz says ok. SIGTERM stops
// it; the same DIR given again resumes with the stored objects.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
)

func main() {
	dir := flag.String("data-dir", "", "directory for etcd's data, keys and the kubeconfig (required)")
	port := flag.Int("port", 0, "port on 127.0.0.1; 0 picks a free one")
	fsync := flag.Bool("fsync", false, "let etcd fsync; off, a power cut (not a crash) can lose data")
	controllers := flag.Bool("controllers", true, "run the garbage collector and the namespace controller")
	klog.InitFlags(nil)
	flag.Parse()
	collectSeldom()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, *port, *fsync, *controllers, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

// collectSeldom trades memory for the collector's time. Nearly all that an API
// server makes for a request is garbage at its end, and what stays, hundreds of
// kilobytes for each of thousands of hosts, was marked so often that it took a
// fifth of the processor. Half of the machine's memory is where that ends: from
// there on it collects as often as it must. GOGC and GOMEMLIMIT, if set, count
// instead.
func collectSeldom() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
	var info syscall.Sysinfo_t
	if os.Getenv("GOMEMLIMIT") == "" && syscall.Sysinfo(&info) == nil {
		debug.SetMemoryLimit(int64(info.Totalram) * int64(info.Unit) / 2)
	}
}

func run(ctx context.Context, dir string, port int, fsync, controllers bool, extra []string) error {
	start := time.Now()
	if dir == "" {
		return fmt.Errorf("--data-dir is required")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if port == 0 {
		if port, err = freePort(); err != nil {
			return err
		}
	}
	host := "https://127.0.0.1:" + strconv.Itoa(port)
	pki, err := makePKI(dir)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	if err := pki.writeKubeconfig(host); err != nil {
		return err
	}
	// etcd's sockets lie in the data directory, whose path may be longer than the
	// 107 bytes that a socket's path may have: so they are named through the
	// working directory. A temporary directory would stay behind whenever
	// kube-apiserver ends the process itself.
	if err := os.Chdir(dir); err != nil {
		return err
	}
	etcd, endpoint, err := startEtcd(dir, "/proc/self/cwd", fsync)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer etcd.Close()

	serverErr := make(chan error, 1)
	go func() { serverErr <- runAPIServer(ctx, dir, port, endpoint, extra) }()

	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for { // until /readyz
		select {
		case err := <-serverErr:
			return fmt.Errorf("kube-apiserver: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
		if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err == nil {
			break
		}
	}
	if controllers {
		if err := startControllers(ctx, config, client); err != nil {
			return fmt.Errorf("controllers: %w", err)
		}
	}
	fmt.Printf("READY %s %.2f\n", host, time.Since(start).Seconds())
	return <-serverErr
}

// startEtcd runs etcd on two unix sockets, so that no port is open that would
// let anyone on the machine past the API server.
func startEtcd(dir, socks string, fsync bool) (*embed.Etcd, string, error) {
	c := embed.NewConfig()
	c.Dir = filepath.Join(dir, "etcd")
	c.LogLevel, c.LogOutputs = "error", []string{"stderr"}
	c.UnsafeNoFsync = !fsync
	// Thousands of hosts write gigabytes of history in five minutes.
	c.AutoCompactionMode, c.AutoCompactionRetention = "periodic", "1m"
	// A lone member has nobody who could have missed entries of its log, of which
	// it would keep thousands in memory, each with a whole object.
	c.SnapshotCatchUpEntries = 100
	c.QuotaBackendBytes = 8 << 30
	clientURL := url.URL{Scheme: "unix", Path: filepath.Join(socks, "etcd-client.sock")}
	c.ListenClientUrls = []url.URL{clientURL}
	c.ListenPeerUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(socks, "etcd-peer.sock")}}
	// What it advertises must be host:port; a lone member never dials it.
	unused := []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	c.AdvertiseClientUrls, c.AdvertisePeerUrls = unused, unused
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, "", err
	}
	select {
	case <-e.Server.ReadyNotify():
		return e, clientURL.String(), nil
	case <-time.After(60 * time.Second):
		e.Close()
		return nil, "", fmt.Errorf("not ready in 60 s")
	}
}

// runAPIServer runs kube-apiserver until ctx is done. extra holds further
// kube-apiserver flags, given after "--" on our command line.
func runAPIServer(ctx context.Context, dir string, port int, etcd string, extra []string) error {
	s := options.NewServerRunOptions()
	fs := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, f := range s.Flags().FlagSets {
		fs.AddFlagSet(f)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := fs.Parse(append([]string{
		"--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--endpoint-reconciler-type=none", // a loopback address can be no endpoint
		"--tls-cert-file=" + in("server.crt"),
		"--tls-private-key-file=" + in("server.key"),
		"--client-ca-file=" + in("ca.crt"),
		"--token-auth-file=" + in("tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + in("sa.key"),
		"--service-account-signing-key-file=" + in("sa.key"),
		"--service-cluster-ip-range=10.0.0.0/24",
		"--authorization-mode=RBAC",
		"--profiling=false",
	}, extra...)); err != nil {
		return err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	completed, err := s.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return errs[0]
	}
	return app.Run(ctx, completed)
}

// startControllers starts what kube-controller-manager calls
// garbage-collector-controller and namespace-controller.
func startControllers(ctx context.Context, config *rest.Config, client kubernetes.Interface) error {
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))
	typed := informers.NewSharedInformerFactory(client, 0)
	untyped := metadatainformer.NewSharedInformerFactory(meta, 0)
	started := make(chan struct{})
	gc, err := garbagecollector.NewGarbageCollector(ctx, client, meta, mapper,
		garbagecollector.DefaultIgnoredResources(),
		informerfactory.NewInformerFactory(typed, untyped), started)
	if err != nil {
		return err
	}
	ns := namespace.NewNamespaceController(ctx, client, meta,
		disco.ServerPreferredNamespacedResources, typed.Core().V1().Namespaces(),
		5*time.Minute, corev1.FinalizerKubernetes)
	go gc.Run(ctx, 10, 30*time.Second)
	go gc.Sync(ctx, disco, 5*time.Second) // soon after a CRD appears, its objects are collected
	go ns.Run(ctx, 5)
	typed.Start(ctx.Done())
	untyped.Start(ctx.Done())
	close(started)
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// pki is the test cluster's certificate authority. Files are made anew at
// each start but for sa.key, with which stored tokens were signed.
type pki struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func makePKI(dir string) (*pki, error) {
	p := &pki{dir: dir}
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	ca := template(pkix.Name{CommonName: "controlplane-ca"})
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, p.key.Public(), p.key)
	if err != nil {
		return nil, err
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := p.write("ca.crt", "CERTIFICATE", der); err != nil {
		return nil, err
	}
	server := template(pkix.Name{CommonName: "kube-apiserver"})
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 0, 1)}
	server.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	if err := p.issue("server", server); err != nil {
		return nil, err
	}
	admin := template(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	admin.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if err := p.issue("admin", admin); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "sa.key")); os.IsNotExist(err) {
		sa, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalECPrivateKey(sa) // kube-apiserver reads no PKCS #8 here
		if err != nil {
			return nil, err
		}
		if err := p.write("sa.key", "EC PRIVATE KEY", der); err != nil {
			return nil, err
		}
	}
	// A bearer token for tools that want none of the certificates (curl).
	raw := make([]byte, 16)
	if _, err := io.ReadFull(rand.Reader, raw); err != nil {
		return nil, err
	}
	token := hex.EncodeToString(raw)
	if err := os.WriteFile(filepath.Join(dir, "admin.token"), []byte(token), 0o600); err != nil {
		return nil, err
	}
	return p, os.WriteFile(filepath.Join(dir, "tokens.csv"),
		[]byte(token+",admin,admin,\"system:masters\"\n"), 0o600)
}

func template(name pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial, Subject: name, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func (p *pki) issue(name string, t *x509.Certificate) error {
	key, err := p.newKey(name)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, p.cert, key.Public(), p.key)
	if err != nil {
		return err
	}
	return p.write(name+".crt", "CERTIFICATE", der)
}

func (p *pki) newKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, p.write(name+".key", "PRIVATE KEY", der)
}

func (p *pki) write(name, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(p.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (p *pki) writeKubeconfig(host string) error {
	read := func(name string) []byte { b, _ := os.ReadFile(filepath.Join(p.dir, name)); return b }
	c := clientcmdapi.NewConfig()
	c.Clusters["test"] = &clientcmdapi.Cluster{Server: host, CertificateAuthorityData: read("ca.crt")}
	c.AuthInfos["admin"] = &clientcmdapi.AuthInfo{
		ClientCertificateData: read("admin.crt"), ClientKeyData: read("admin.key")}
	c.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin"}
	c.CurrentContext = "test"
	return clientcmd.WriteToFile(*c, filepath.Join(p.dir, "admin.kubeconfig"))
}
