(request) => {
	// What has arrived and was not taken yet. Nobody but the holder of the object
	// that is returned can reach it: the page's own scripts see no more than a
	// fetch.
	const queue = [];
	let size = 0, head = null, ended = false, failure = null;
	let wake = () => {}, room = () => {};

	const put = (bytes) => { queue.push(bytes); size += bytes.length; wake(); };
	const end = (error) => {
		if (ended) return;
		ended = true;
		if (error !== undefined) failure = String(error);
		wake();
	};
	const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
	const base64 = (bytes) => {
		if (bytes.toBase64) return bytes.toBase64();
		let text = "";
		for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
		return btoa(text);
	};

	const byFetch = () => {
		const controller = new AbortController();
		const read = async () => {
			const response = await fetch(request.url, {
				method: request.method, headers: request.headers, body: request.body ? bytesOf(request.body) : undefined,
				credentials: "include", cache: "no-store", signal: controller.signal,
			});
			head = {status: response.status, headers: [...response.headers]};
			wake();
			if (!response.body) return;
			const reader = response.body.getReader();
			for (;;) {
				const {done, value} = await reader.read();
				if (done) return;
				put(value);
				while (size > request.limit && !ended) await new Promise((f) => { room = f; });
			}
		};
		read().then(() => end(), end);
		return () => controller.abort();
	};

	// An EventSource tells events and not bytes, so they are written down again
	// as they were.
	const byEventSource = () => {
		const source = new EventSource(request.url, {withCredentials: true});
		const encoder = new TextEncoder();
		let last = "";
		const take = (e) => {
			if (!(e instanceof MessageEvent)) return;
			let text = "";
			if (e.lastEventId !== last) text += "id: " + (last = e.lastEventId) + "\n";
			if (e.type !== "message") text += "event: " + e.type + "\n";
			for (const line of String(e.data).split("\n")) text += "data: " + line + "\n";
			put(encoder.encode(text + "\n"));
			if (size > request.most) { source.close(); end("it is read more slowly than it comes"); }
		};
		for (const type of new Set(["message", ...request.types])) source.addEventListener(type, take);
		source.addEventListener("open", (e) => {
			if (e instanceof MessageEvent || head) return;
			head = {status: 200, headers: [["content-type", "text/event-stream"]]};
			wake();
		});
		source.addEventListener("error", (e) => {
			if (e instanceof MessageEvent) return;
			source.close(); // it would connect again by itself
			end(head ? undefined : "refused");
		});
		return () => source.close();
	};

	const stop = request.eventSource ? byEventSource() : byFetch();
	return {
		// next waits for something to tell: the head, then pieces of the body,
		// then the end.
		async next() {
			while (!head && !size && !ended) await new Promise((f) => { wake = f; });
			if (head && !head.told) { head.told = true; return "h" + JSON.stringify(head); }
			while (!size && !ended) await new Promise((f) => { wake = f; });
			if (!size) return failure === null ? "e" : "f" + failure;
			let length = 0, n = 0;
			while (n < queue.length && length < request.piece) length += queue[n++].length;
			const bytes = new Uint8Array(length);
			let at = 0;
			for (const piece of queue.splice(0, n)) { bytes.set(piece, at); at += piece.length; }
			size -= length;
			room();
			return "d" + base64(bytes);
		},
		stop() { ended = true; queue.length = size = 0; stop(); wake(); room(); },
	};
}
