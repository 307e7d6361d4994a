// Fifty connections at once, by one who gets back what it sends.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

func main() {
	var group sync.WaitGroup
	for i := 0; i < 50; i++ {
		group.Add(1)
		go func(text string) {
			defer group.Done()
			c, err := net.Dial("tcp", "192.0.2.1:80")
			if err != nil {
				fmt.Println(err)
				os.Exit(3)
			}
			io.WriteString(c, text)
			c.(*net.TCPConn).CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil || string(got) != text {
				fmt.Println(err, string(got))
				os.Exit(4)
			}
		}(fmt.Sprint("from ", i))
	}
	group.Wait()
	fmt.Println("ok")
}
