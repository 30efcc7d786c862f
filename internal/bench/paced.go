package main

import (
	"net/http"
	"strconv"
	"time"
)

// servePrices sends the events with the numbers after Last-Event-ID up to n, of
// 200 bytes each: rate of them a second, or as fast as the reader takes them.
// The time of sending, in ns, is among the data. Each event is an HTTP chunk of
// its own, as where a site flushes each: that is written by hand here, so that
// the server does not take more than those who are measured.
func servePrices(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.FormValue("n"))
	rate, _ := strconv.Atoi(r.FormValue("rate"))
	last, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	began, first := time.Now(), last
	b := []byte(chunkedHead)
	for last < n {
		upTo := n
		if rate > 0 {
			upTo = min(n, first+1+int(time.Since(began).Seconds()*float64(rate)))
		}
		sent := time.Now()
		for ; last < upTo && len(b) < 32<<10; last++ {
			b = append(b, "c8\r\n"...) // 200
			b = append(price(b, last+1, sent), "\r\n"...)
		}
		if _, err := c.Write(b); err != nil {
			return
		}
		b = b[:0]
		if rate > 0 && last == upTo && last < n {
			time.Sleep(time.Until(began.Add(time.Duration(last-first) * time.Second / time.Duration(rate))))
		}
	}
	_, _ = c.Write([]byte("0\r\n\r\n")) // or the reader notices
}

// price appends an event of 200 bytes.
func price(b []byte, id int, sent time.Time) []byte {
	start := len(b)
	b = append(b, "id: "...)
	b = strconv.AppendInt(b, int64(id), 10)
	b = append(b, "\nevent: price_update\ndata: {\"symbol\":\"BTCUSDT\",\"price\":\""...)
	b = strconv.AppendInt(b, int64(60000+id%977), 10)
	b = append(b, ".25\",\"volume\":\"0.00321\",\"timestamp\":\"2026-01-02T03:04:05.000001Z\",\"sent\":"...)
	b = strconv.AppendInt(b, sent.UnixNano(), 10)
	b = append(b, ",\"v\":\""...)
	for len(b)-start < 196 {
		b = append(b, 'x')
	}
	return append(b, "\"}\n\n"...)
}
