import com.amazonaws.services.dynamodbv2.local.main.ServerRunner;
import com.amazonaws.services.dynamodbv2.local.server.DynamoDBProxyServer;
import java.net.ServerSocket;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider;
import software.amazon.awssdk.core.SdkBytes;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.awssdk.services.kinesis.model.PutRecordsRequestEntry;
import software.amazon.awssdk.services.kinesis.model.ScalingType;
import software.amazon.awssdk.services.kinesis.model.StreamStatus;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.common.KinesisClientUtil;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.metrics.NullMetricsFactory;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.processor.SingleStreamTracker;
import software.amazon.kinesis.producer.KinesisProducer;
import software.amazon.kinesis.producer.KinesisProducerConfiguration;
import software.amazon.kinesis.retrieval.KinesisClientRecord;
import software.amazon.kinesis.retrieval.RetrievalSpecificConfig;
import software.amazon.kinesis.retrieval.fanout.FanOutConfig;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/**
 * The Java SDK (CBOR, HTTP/2), the Kinesis Client Library 3 by polling and by fan-out with a worker killed midway, and, if
 * MILEPOST_KINESIS_TLS names an https endpoint, the Kinesis Producer Library. Leases are in a DynamoDB Local of our own.
 */
public final class Interop {
    private static final Region REGION = Region.of(System.getenv().getOrDefault("AWS_REGION", "us-east-1"));
    private static final URI ENDPOINT = URI.create(System.getenv("MILEPOST_KINESIS"));

    public static void main(String[] args) throws Exception {
        int port;
        try (ServerSocket s = new ServerSocket(0)) {
            port = s.getLocalPort();
        }
        DynamoDBProxyServer dynamo = ServerRunner.createServerFromCommandLineArgs(new String[] {"-inMemory", "-port", "" + port});
        dynamo.start();
        URI dynamoEndpoint = URI.create("http://127.0.0.1:" + port);
        try (KinesisAsyncClient kinesis = KinesisClientUtil.createKinesisAsyncClient(KinesisAsyncClient.builder()
                .region(REGION).endpointOverride(ENDPOINT).credentialsProvider(EnvironmentVariableCredentialsProvider.create()))) {
            for (boolean fanOut : new boolean[] {false, true}) {
                consume(kinesis, dynamoEndpoint, fanOut);
            }
            if (System.getenv("MILEPOST_KINESIS_TLS") != null) {
                produce(kinesis, dynamoEndpoint, URI.create(System.getenv("MILEPOST_KINESIS_TLS")));
            }
        }
        dynamo.stop();
        System.exit(0); // the libraries keep threads
    }

    /** Puts, reads with two workers, kills one, reshards, and wants every record to arrive. */
    private static void consume(KinesisAsyncClient kinesis, URI dynamo, boolean fanOut) throws Exception {
        String stream = "interop-kcl-" + (fanOut ? "fanout-" : "polling-") + UUID.randomUUID().toString().substring(0, 8);
        kinesis.createStream(r -> r.streamName(stream).shardCount(2)).get();
        active(kinesis, stream);
        Set<String> got = ConcurrentHashMap.newKeySet();
        Worker first = new Worker(kinesis, dynamo, stream, fanOut, got);
        put(kinesis, stream, 0, 500);
        until("the first worker has read 500 records", 120, () -> got.size() == 500, () -> got.size());
        Worker second = new Worker(kinesis, dynamo, stream, fanOut, got);
        first.kill();
        put(kinesis, stream, 500, 1000);
        until("the second worker has taken over", 180, () -> got.size() == 1000, () -> got.size());
        kinesis.updateShardCount(r -> r.streamName(stream).targetShardCount(4).scalingType(ScalingType.UNIFORM_SCALING)).get();
        active(kinesis, stream);
        put(kinesis, stream, 1000, 1500);
        until("records after resharding have come", 180, () -> got.size() == 1500, () -> got.size());
        second.kill();
        kinesis.deleteStream(r -> r.streamName(stream).enforceConsumerDeletion(true)).get();
        System.out.println("KCL " + (fanOut ? "fan-out" : "polling") + " ok");
    }

    /** The producer library aggregates; the client library takes the aggregates apart. */
    private static void produce(KinesisAsyncClient kinesis, URI dynamo, URI tls) throws Exception {
        String stream = "interop-kpl-" + UUID.randomUUID().toString().substring(0, 8);
        kinesis.createStream(r -> r.streamName(stream).shardCount(2)).get();
        active(kinesis, stream);
        KinesisProducerConfiguration c = new KinesisProducerConfiguration()
                .setRegion(REGION.id()).setKinesisEndpoint(tls.getHost()).setKinesisPort(tls.getPort()).setVerifyCertificate(false)
                .setMetricsLevel("none").setLogLevel("warning");
        KinesisProducer producer = new KinesisProducer(c);
        for (int i = 0; i < 2000; i++) {
            producer.addUserRecord(stream, "truck-" + i % 50, ByteBuffer.wrap(("record " + i).getBytes(StandardCharsets.UTF_8)));
        }
        producer.flushSync();
        producer.destroy();
        Set<String> got = ConcurrentHashMap.newKeySet();
        Worker worker = new Worker(kinesis, dynamo, stream, false, got);
        until("what the producer library sent has come", 120, () -> got.size() == 2000, () -> got.size());
        worker.kill();
        kinesis.deleteStream(r -> r.streamName(stream).enforceConsumerDeletion(true)).get();
        System.out.println("KPL ok");
    }

    private static void put(KinesisAsyncClient kinesis, String stream, int from, int to) throws Exception {
        List<PutRecordsRequestEntry> records = new ArrayList<>();
        for (int i = from; i < to; i++) {
            records.add(PutRecordsRequestEntry.builder().partitionKey("truck-" + i % 50).data(SdkBytes.fromUtf8String("record " + i)).build());
        }
        var out = kinesis.putRecords(r -> r.streamName(stream).records(records)).get(30, TimeUnit.SECONDS);
        if (out.failedRecordCount() != 0) {
            throw new IllegalStateException(out.failedRecordCount() + " records failed");
        }
    }

    private static void active(KinesisAsyncClient kinesis, String stream) throws Exception {
        until(stream + " is ACTIVE", 30, () -> kinesis.describeStreamSummary(r -> r.streamName(stream)).join()
                .streamDescriptionSummary().streamStatus() == StreamStatus.ACTIVE, () -> 0);
    }

    private static void until(String what, int seconds, BooleanSupplier condition, java.util.function.IntSupplier have) throws Exception {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        while (!condition.getAsBoolean()) {
            if (System.nanoTime() > end) {
                System.err.println("not within " + seconds + " s: " + what + " (" + have.getAsInt() + ")");
                System.exit(1);
            }
            Thread.sleep(100);
        }
    }

    /** One KCL worker on a thread. */
    private static final class Worker {
        private final Scheduler scheduler;

        Worker(KinesisAsyncClient kinesis, URI dynamo, String stream, boolean fanOut, Set<String> got) {
            DynamoDbAsyncClient leases = DynamoDbAsyncClient.builder().region(REGION).endpointOverride(dynamo)
                    .credentialsProvider(EnvironmentVariableCredentialsProvider.create()).build();
            CloudWatchAsyncClient unused = CloudWatchAsyncClient.builder().region(REGION)
                    .credentialsProvider(EnvironmentVariableCredentialsProvider.create()).build();
            ConfigsBuilder b = new ConfigsBuilder(
                    new SingleStreamTracker(stream, InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON)),
                    stream, kinesis, leases, unused, UUID.randomUUID().toString(), () -> new Processor(got));
            RetrievalSpecificConfig how = fanOut
                    ? new FanOutConfig(kinesis).streamName(stream).applicationName(stream)
                    : new PollingConfig(stream, kinesis);
            scheduler = new Scheduler(
                    b.checkpointConfig(), b.coordinatorConfig().parentShardPollIntervalMillis(1000).shardConsumerDispatchPollIntervalMillis(200),
                    b.leaseManagementConfig().failoverTimeMillis(5000).shardSyncIntervalMillis(2000).leasesRecoveryAuditorExecutionFrequencyMillis(5000),
                    b.lifecycleConfig(), b.metricsConfig().metricsFactory(new NullMetricsFactory()), b.processorConfig(),
                    b.retrievalConfig().retrievalSpecificConfig(how));
            Thread t = new Thread(scheduler, "worker of " + stream);
            t.setDaemon(true);
            t.start();
        }

        void kill() {
            scheduler.shutdown();
        }
    }

    private record Processor(Set<String> got) implements ShardRecordProcessor {
        @Override public void initialize(InitializationInput input) { }

        @Override public void processRecords(ProcessRecordsInput input) {
            for (KinesisClientRecord r : input.records()) {
                got.add(StandardCharsets.UTF_8.decode(r.data().duplicate()).toString());
            }
            try {
                input.checkpointer().checkpoint();
            } catch (Exception e) {
                System.err.println("checkpoint: " + e);
            }
        }

        @Override public void leaseLost(LeaseLostInput input) { }

        @Override public void shardEnded(ShardEndedInput input) {
            try {
                input.checkpointer().checkpoint();
            } catch (Exception e) {
                System.err.println("checkpoint at shard end: " + e);
            }
        }

        @Override public void shutdownRequested(ShutdownRequestedInput input) { }
    }
}
