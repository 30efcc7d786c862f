package sse_test

import (
	"fmt"
	"io"
	"strings"

	"github.com/holdline/scrape/internal/sse"
)

func Example() {
	body := strings.NewReader("id: 7\nevent: price\ndata: 60000\n\nid: 8\n\ndata: [DONE]")
	d := sse.NewDecoder(body, sse.Options{
		OnOddity: func(o sse.Oddity) { fmt.Println(o.Kind, o.First) },
	})
	defer d.Close()
	var ev sse.Event
	for {
		err := d.Next(&ev)
		if err == io.EOF {
			break
		} else if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s %s %s\n", ev.ID, ev.Type, ev.Data)
	}
	fmt.Println("resume from", d.LastEventID())
	// Output:
	// 7 price 60000
	// unterminated block [DONE]
	// resume from 8
}
