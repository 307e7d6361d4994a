// Looks a name up, and connects to it, by Go's own resolver.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"sort"
)

func main() {
	found, err := net.LookupHost(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	sort.Strings(found)
	for _, one := range found {
		fmt.Println(one)
	}
	connection, err := net.Dial("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	io.Copy(os.Stdout, connection)
}
