import com.amazonaws.services.dynamodbv2.local.main.ServerRunner;
import com.amazonaws.services.dynamodbv2.local.server.DynamoDBProxyServer;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.PrintStream;
import java.net.ServerSocket;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
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
import software.amazon.kinesis.leases.LeaseManagementConfig;
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
 * The Java SDK (CBOR, HTTP/2), the Kinesis Client Library 3 by polling and by fan-out with a worker killed midway, and the Kinesis
 * Producer Library, if MILEPOST_KINESIS_TLS names an https endpoint. Leases are in a DynamoDB Local of our own.
 *
 * Workers are processes of their own ({@code Interop worker DYNAMO STREAM polling|fanout}) that print each record they get, so that
 * one can really be killed: it hands nothing over, and the other must wait until its leases have run out.
 */
public final class Interop {
    private static final Region REGION = Region.of(System.getenv().getOrDefault("AWS_REGION", "us-east-1"));
    private static final URI ENDPOINT = URI.create(System.getenv("MILEPOST_KINESIS"));
    private static final int SECONDS = 150; // for each thing waited for: many times what it takes on a busy machine

    public static void main(String[] args) throws Exception {
        if (args.length == 4 && args[0].equals("worker")) {
            work(URI.create(args[1]), args[2], args[3].equals("fanout"));
            return;
        }
        int port;
        try (ServerSocket s = new ServerSocket(0)) {
            port = s.getLocalPort();
        }
        DynamoDBProxyServer dynamo = ServerRunner.createServerFromCommandLineArgs(new String[] {"-inMemory", "-port", "" + port});
        dynamo.start();
        String leases = "http://127.0.0.1:" + port;
        int status = 0;
        try (KinesisAsyncClient kinesis = client()) {
            List<Callable<Void>> runs = new ArrayList<>();
            runs.add(() -> consume(kinesis, leases, false));
            runs.add(() -> consume(kinesis, leases, true));
            String tls = System.getenv("MILEPOST_KINESIS_TLS");
            if (tls != null) {
                runs.add(() -> produce(kinesis, leases, URI.create(tls)));
            }
            ExecutorService threads = Executors.newFixedThreadPool(runs.size());
            for (Future<Void> run : threads.invokeAll(runs)) { // at one time: most of it is waiting for leases
                try {
                    run.get();
                } catch (Exception e) {
                    e.printStackTrace();
                    status = 1;
                }
            }
        }
        dynamo.stop();
        System.exit(status); // the libraries keep threads
    }

    private static KinesisAsyncClient client() {
        return KinesisClientUtil.createKinesisAsyncClient(KinesisAsyncClient.builder()
                .region(REGION).endpointOverride(ENDPOINT).credentialsProvider(EnvironmentVariableCredentialsProvider.create()));
    }

    /** Puts, reads with two workers, kills one while records come, reshards, and wants every record to arrive. */
    private static Void consume(KinesisAsyncClient kinesis, String leases, boolean fanOut) throws Exception {
        String kind = fanOut ? "fanout" : "polling";
        String stream = "interop-kcl-" + kind + "-" + UUID.randomUUID().toString().substring(0, 8);
        kinesis.createStream(r -> r.streamName(stream).shardCount(2)).get();
        active(kinesis, stream);
        Set<String> got = ConcurrentHashMap.newKeySet();
        put(kinesis, stream, 0, 500);
        Worker first = new Worker(leases, stream, kind, got);
        Worker second = null;
        try {
            until(kind + ": the first worker has read 500 records", () -> got.size() == 500, got);
            second = new Worker(leases, stream, kind, got);
            for (int i = 500; i < 1000; i += 50) {
                put(kinesis, stream, i, i + 50);
                if (i == 700) {
                    until(kind + ": the first worker is in the midst", () -> got.size() > 500, got);
                    first.kill();
                }
            }
            until(kind + ": the second worker has taken over", () -> got.size() == 1000, got);
            kinesis.updateShardCount(r -> r.streamName(stream).targetShardCount(4).scalingType(ScalingType.UNIFORM_SCALING)).get();
            active(kinesis, stream);
            put(kinesis, stream, 1000, 1500);
            until(kind + ": records after resharding have come", () -> got.size() == 1500, got);
        } finally {
            first.kill();
            if (second != null) {
                second.kill();
            }
        }
        kinesis.deleteStream(r -> r.streamName(stream).enforceConsumerDeletion(true)).get();
        System.out.println("KCL " + kind + " ok");
        return null;
    }

    /** The producer library aggregates; the client library takes the aggregates apart. */
    private static Void produce(KinesisAsyncClient kinesis, String leases, URI tls) throws Exception {
        String stream = "interop-kpl-" + UUID.randomUUID().toString().substring(0, 8);
        kinesis.createStream(r -> r.streamName(stream).shardCount(2)).get();
        active(kinesis, stream);
        Set<String> got = ConcurrentHashMap.newKeySet();
        Worker worker = new Worker(leases, stream, "polling", got);
        try {
            KinesisProducerConfiguration c = new KinesisProducerConfiguration()
                    .setRegion(REGION.id()).setKinesisEndpoint(tls.getHost()).setKinesisPort(tls.getPort()).setVerifyCertificate(false)
                    .setTempDirectory(System.getProperty("java.io.tmpdir")).setMetricsLevel("none").setLogLevel("warning");
            KinesisProducer producer = new KinesisProducer(c);
            for (int i = 0; i < 1000; i++) {
                producer.addUserRecord(stream, "truck-" + i % 50, ByteBuffer.wrap(("record " + i).getBytes(StandardCharsets.UTF_8)));
            }
            producer.flushSync();
            kinesis.splitShard(r -> r.streamName(stream).shardToSplit("shardId-000000000000").newStartingHashKey("1000000")).get();
            active(kinesis, stream);
            for (int i = 1000; i < 2000; i++) {
                producer.addUserRecord(stream, "truck-" + i % 50, ByteBuffer.wrap(("record " + i).getBytes(StandardCharsets.UTF_8)));
            }
            producer.flushSync();
            producer.destroy();
            until("what the producer library sent has come", () -> got.size() == 2000, got);
        } finally {
            worker.kill();
        }
        kinesis.deleteStream(r -> r.streamName(stream).enforceConsumerDeletion(true)).get();
        System.out.println("KPL ok");
        return null;
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
        until(stream + " is ACTIVE", () -> kinesis.describeStreamSummary(r -> r.streamName(stream)).join()
                .streamDescriptionSummary().streamStatus() == StreamStatus.ACTIVE, Set.of());
    }

    private static void until(String what, BooleanSupplier condition, Set<String> got) throws Exception {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(SECONDS);
        while (!condition.getAsBoolean()) {
            if (System.nanoTime() > end) {
                throw new IllegalStateException("not within " + SECONDS + " s: " + what + " (" + got.size() + ")");
            }
            Thread.sleep(100);
        }
    }

    /** A process that runs {@link #work}; the records that it prints are collected. */
    private static final class Worker {
        private final Process process;

        Worker(String leases, String stream, String kind, Set<String> got) throws IOException {
            process = new ProcessBuilder(System.getProperty("java.home") + "/bin/java", "-Xmx192m", "-XX:TieredStopAtLevel=1",
                    "-Dorg.slf4j.simpleLogger.defaultLogLevel=" + System.getProperty("org.slf4j.simpleLogger.defaultLogLevel", "error"),
                    "-cp", System.getProperty("java.class.path"), "Interop", "worker", leases, stream, kind)
                    .redirectError(ProcessBuilder.Redirect.INHERIT).start();
            Thread t = new Thread(() -> {
                try (BufferedReader r = process.inputReader(StandardCharsets.UTF_8)) {
                    for (String line; (line = r.readLine()) != null; ) {
                        if (line.startsWith("record ")) {
                            got.add(line);
                        }
                    }
                } catch (IOException e) {
                    // it was killed
                }
            });
            t.setDaemon(true);
            t.start();
        }

        /** SIGKILL. */
        void kill() throws InterruptedException {
            process.destroyForcibly().waitFor();
        }
    }

    /** One KCL worker, with leases that run out in seconds; it ends with its standard input's other end, the parent. */
    private static void work(URI dynamo, String stream, boolean fanOut) throws Exception {
        Thread parent = new Thread(() -> {
            try {
                while (System.in.read() >= 0) { }
            } catch (IOException e) {
                // the same
            }
            Runtime.getRuntime().halt(0);
        });
        parent.setDaemon(true);
        parent.start();
        KinesisAsyncClient kinesis = client();
        DynamoDbAsyncClient leases = DynamoDbAsyncClient.builder().region(REGION).endpointOverride(dynamo)
                .credentialsProvider(EnvironmentVariableCredentialsProvider.create()).build();
        CloudWatchAsyncClient unused = CloudWatchAsyncClient.builder().region(REGION)
                .credentialsProvider(EnvironmentVariableCredentialsProvider.create()).build();
        ConfigsBuilder b = new ConfigsBuilder(
                new SingleStreamTracker(stream, InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON)),
                stream, kinesis, leases, unused, UUID.randomUUID().toString(), Processor::new);
        RetrievalSpecificConfig how = fanOut
                ? new FanOutConfig(kinesis).streamName(stream).applicationName(stream)
                : new PollingConfig(stream, kinesis).idleTimeBetweenReadsInMillis(500);
        LeaseManagementConfig l = b.leaseManagementConfig().failoverTimeMillis(5000).shardSyncIntervalMillis(2000)
                .leasesRecoveryAuditorExecutionFrequencyMillis(5000)
                .dynamoDbLockBasedLeaderLeaseDurationInMillis(10_000).dynamoDbLockBasedLeaderHeartbeatPeriodInMillis(2000);
        l.workerUtilizationAwareAssignmentConfig().workerMetricsReporterFreqInMillis(2000);
        new Scheduler(
                b.checkpointConfig(), b.coordinatorConfig().parentShardPollIntervalMillis(1000).shardConsumerDispatchPollIntervalMillis(200), l,
                b.lifecycleConfig(), b.metricsConfig().metricsFactory(new NullMetricsFactory()), b.processorConfig(),
                b.retrievalConfig().retrievalSpecificConfig(how)).run();
    }

    private static final class Processor implements ShardRecordProcessor {
        @Override public void initialize(InitializationInput input) { }

        @Override public void processRecords(ProcessRecordsInput input) {
            StringBuilder lines = new StringBuilder();
            for (KinesisClientRecord r : input.records()) {
                lines.append(StandardCharsets.UTF_8.decode(r.data().duplicate())).append('\n');
            }
            PrintStream out = System.out; // one call, so that the lines of two shards do not mix
            out.print(lines);
            out.flush();
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
