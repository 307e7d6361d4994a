// A program that knows nothing of proxies: leak_fetch HOST PORT COUNT, all at once.
package main

import (
	"io"
	"net"
	"os"
	"strconv"
)

func fetch(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /1000 HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && len(answer) <= 1000 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func main() {
	address := net.JoinHostPort(os.Args[1], os.Args[2])
	count, _ := strconv.Atoi(os.Args[3])
	ends := make(chan error)
	for i := 0; i < count; i++ {
		go func() { ends <- fetch(address) }()
	}
	status := 0
	for i := 0; i < count; i++ {
		if err := <-ends; err != nil {
			println(err.Error())
			status = 1
		}
	}
	os.Exit(status)
}
