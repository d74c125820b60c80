/* libwebsockets as an echo server: lws [--addr HOST:PORT]
 *
 * As its echo example: what is received is queued, and each time that the connection is writable one
 * message is written, as its documentation demands. On libuv, since its own loop is one of poll(). */
#include <libwebsockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of a message, received at a time. The library allocates as much for each connection, though it only
 * becomes memory where it is written to. */
#define RECEIVE (64 * 1024)

struct message {
	struct message *next;
	size_t length, room;
	int binary;
	/* LWS_PRE bytes for the library, then the message. */
	unsigned char bytes[];
};

struct connection {
	/* Complete ones that wait to be written. */
	struct message *first, *last;
	/* The one that is being received. */
	struct message *partial;
};

/* Appends to a message, or begins one. */
static struct message *append(struct message *message, const void *bytes, size_t length, size_t to_come)
{
	size_t had = message ? message->length : 0, need = had + length + to_come;
	if (!message || need > message->room) {
		message = realloc(message, sizeof *message + LWS_PRE + need);
		if (!message)
			return NULL;
		message->room = need;
	}
	memcpy(message->bytes + LWS_PRE + had, bytes, length);
	message->length = had + length;
	return message;
}

static int receive(struct lws *wsi, struct connection *connection, const void *bytes, size_t length)
{
	struct message *message =
		append(connection->partial, bytes, length, lws_remaining_packet_payload(wsi));
	if (!message)
		return -1;
	connection->partial = message;
	if (lws_remaining_packet_payload(wsi) || !lws_is_final_fragment(wsi))
		return 0;
	connection->partial = NULL;
	message->next = NULL;
	message->binary = lws_frame_is_binary(wsi);
	if (connection->first)
		connection->last->next = message;
	else
		connection->first = message;
	connection->last = message;
	lws_callback_on_writable(wsi);
	return 0;
}

static int write_one(struct lws *wsi, struct connection *connection)
{
	struct message *message = connection->first;
	if (!message)
		return 0;
	enum lws_write_protocol kind = message->binary ? LWS_WRITE_BINARY : LWS_WRITE_TEXT;
	int written = lws_write(wsi, message->bytes + LWS_PRE, message->length, kind);
	if (written < (int)message->length)
		return -1;
	connection->first = message->next;
	free(message);
	if (connection->first)
		lws_callback_on_writable(wsi);
	return 0;
}

static void forget(struct connection *connection)
{
	while (connection->first) {
		struct message *message = connection->first;
		connection->first = message->next;
		free(message);
	}
	free(connection->partial);
	connection->partial = NULL;
}

static int echo(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
	switch (reason) {
	case LWS_CALLBACK_ESTABLISHED:
		memset(user, 0, sizeof(struct connection));
		return 0;
	case LWS_CALLBACK_RECEIVE:
		return receive(wsi, user, in, len);
	case LWS_CALLBACK_SERVER_WRITEABLE:
		return write_one(wsi, user);
	case LWS_CALLBACK_CLOSED:
		forget(user);
		return 0;
	default:
		return lws_callback_http_dummy(wsi, reason, user, in, len);
	}
}

static void end(int number)
{
	(void)number;
	_exit(0);
}

int main(int argc, char **argv)
{
	char addr[256] = "127.0.0.1:0";
	if (argc == 3 && !strcmp(argv[1], "--addr"))
		snprintf(addr, sizeof addr, "%s", argv[2]);
	else if (argc != 1)
		return fprintf(stderr, "usage: lws [--addr HOST:PORT]\n"), 2;
	char *colon = strrchr(addr, ':');
	if (!colon)
		return fprintf(stderr, "lws: %s has no port\n", addr), 2;
	*colon = 0;

	/* The handshake of the load generator names no protocol: it gets the first. */
	static const struct lws_protocols protocols[] = {
		{"echo", echo, sizeof(struct connection), RECEIVE, 0, NULL, 0},
		{NULL, NULL, 0, 0, 0, NULL, 0},
	};
	struct lws_context_creation_info info;
	memset(&info, 0, sizeof info);
	info.iface = addr;
	info.port = atoi(colon + 1);
	info.protocols = protocols;
	info.pt_serv_buf_size = RECEIVE;
	info.options = LWS_SERVER_OPTION_LIBUV | LWS_SERVER_OPTION_EXPLICIT_VHOSTS |
		       LWS_SERVER_OPTION_DISABLE_IPV6;
	lws_set_log_level(LLL_ERR, NULL);
	struct lws_context *context = lws_create_context(&info);
	struct lws_vhost *vhost = context ? lws_create_vhost(context, &info) : NULL;
	if (!vhost)
		return fprintf(stderr, "lws: cannot listen\n"), 1;
	signal(SIGTERM, end);
	signal(SIGINT, end);
	printf("listening on %s:%d\n", addr, lws_get_vhost_listen_port(vhost));
	fflush(stdout);
	while (lws_service(context, 0) >= 0) {
	}
	return 1;
}
