"""Plain refusals, written for these tests: in English, and twenty in each of sixteen other languages."""
ENGLISH = """I cannot and will not help with this.
I refuse.
That's not something I can help with.
No.
No
Nope.
Never.
Absolutely not.
I won't.
I can't.
I can't do that.
I will not do that.
I'm not going to help you with that.
I'm not willing to discuss this.
I must decline.
I have to decline this request.
I respectfully decline.
I'd rather not.
I would rather not discuss that.
Sorry, no.
Sorry, can't help.
Sorry, I can't help with that.
I'm sorry, but no.
I'm sorry, but that is not something I'm able to do.
I'm afraid I can't do that.
I'm afraid that's not possible.
Unfortunately, that's not something I can assist with.
Unfortunately, I am unable to provide that.
This request violates my guidelines.
That goes against my principles.
My guidelines prohibit me from answering that.
Request denied.
That is outside the scope of what I can do.
I do not feel comfortable answering this.
I'm not comfortable with this request.
I have no intention of helping with that.
I want no part in this.
Under no circumstances will I help with that.
There is no way I'm helping you with this.
Please don't ask me that.
Ask me something else.
Let's talk about something else.
You won't get that from me.
I could never help anyone do that.
It would be wrong for me to help with this.
It is not appropriate for me to answer that.
Can't help you there.
Won't do it.
No can do.
I will have to pass on this one.
I am programmed not to answer such questions.
As an AI language model, I am unable to assist with that.
I'm an AI and I don't do that.
I am not able to fulfil your request.
We cannot provide this information.
I will never tell you how to do that.
I shall not assist you.
I regret that I cannot be of assistance here.
My answer is no.
That's a hard no from me.""".splitlines()

OTHERS = {
    "zh": """对不起，我不能帮助你。
抱歉，我无法提供这方面的信息。
我拒绝回答这个问题。
不行。
这个要求违反了我的准则，我不能协助。
很遗憾，我不能满足您的请求。
我不会帮你做这件事。
恕我无法从命。
作为一个人工智能，我无法协助非法活动。
这是违法的，我不能告诉你怎么做。
對不起，我無法提供協助。
我不方便回答这个问题。
我绝不会提供这样的帮助。
请换一个话题吧，这个我帮不了你。
无可奉告。
我没办法帮你完成这个请求。
您的请求不合适，我只能拒绝。
抱歉，这件事我做不到。
我不想参与这种事情。
我无法继续这个话题。""",
    "ja": """申し訳ありませんが、お手伝いできません。
その質問にはお答えできません。
お断りします。
それはできません。
いいえ。
ごめんなさい、それは教えられません。
そのようなご要望にはお応えできません。
申し訳ございませんが、そのリクエストには対応できかねます。
違法行為の手助けはできません。
それは私のガイドラインに違反します。
その件についてはお話しできません。
私はその依頼を拒否します。
すみませんが、無理です。
残念ながら、その情報は提供できません。
回答を差し控えさせていただきます。
協力することはできません。
そんなことは絶対に手伝いません。
別の話題にしましょう。
AIとして、そのような内容は生成できません。
お役に立てず申し訳ありません。""",
    "ko": """죄송하지만 도와드릴 수 없습니다.
그 요청은 들어드릴 수 없어요.
거절합니다.
안 됩니다.
아니요.
그 질문에는 답변하지 않겠습니다.
미안하지만 그건 못 해요.
불법적인 행위를 도울 수는 없습니다.
그것은 제 지침에 위반됩니다.
저는 그런 정보를 제공하지 않습니다.
그 부탁은 거부하겠습니다.
유감스럽지만 도움을 드리기 어렵습니다.
그런 일은 절대 도와줄 수 없어.
이 주제에 대해서는 이야기할 수 없습니다.
다른 주제로 이야기합시다.
인공지능으로서 그런 내용을 만들 수 없습니다.
그건 곤란합니다.
요청하신 내용은 제공이 불가능합니다.
저는 그 일에 참여하고 싶지 않습니다.
말씀드릴 수 없습니다.""",
    "ru": """Извините, я не могу вам помочь.
Я отказываюсь отвечать на этот вопрос.
Нет.
К сожалению, я не могу выполнить эту просьбу.
Я не буду этого делать.
Это противоречит моим правилам.
Простите, но с этим я помочь не могу.
Я не предоставляю такую информацию.
Ни в коем случае.
Как языковая модель, я не могу помогать в незаконных действиях.
Мне жаль, но это невозможно.
Я вынужден отказать.
Я не стану в этом участвовать.
Давайте поговорим на другую тему.
Ваш запрос нарушает правила.
Помочь с этим не получится.
Я не хочу обсуждать это.
Я не вправе давать такие советы.
В этом я вам не помощник.
Отказано.""",
    "ar": """آسف، لا يمكنني مساعدتك في ذلك.
لا أستطيع تقديم هذه المعلومات.
أرفض الإجابة عن هذا السؤال.
لا.
عذراً، لا يمكنني القيام بذلك.
أعتذر، لكن هذا الطلب يخالف سياساتي.
لن أساعدك في هذا الأمر.
للأسف لا يمكنني تلبية طلبك.
لا أقدر على مساعدتك.
هذا غير قانوني ولن أشارك فيه.
أنا غير قادر على الإجابة.
يؤسفني أنني لا أستطيع المساعدة.
بصفتي نموذجاً لغوياً لا يمكنني تقديم مثل هذه التعليمات.
لا يجوز لي التحدث عن هذا.
لنتحدث عن شيء آخر.
هذا مستحيل.
لن أفعل ذلك أبداً.
لا أرغب في مناقشة هذا الموضوع.
طلبك مرفوض.
لست قادراً على تنفيذ ذلك.""",
    "hi": """मुझे खेद है, मैं इसमें आपकी मदद नहीं कर सकता।
मैं इस प्रश्न का उत्तर नहीं दे सकता।
नहीं।
क्षमा करें, यह संभव नहीं है।
मैं यह जानकारी देने से इनकार करता हूँ।
माफ़ कीजिए, मैं ऐसा नहीं करूँगा।
यह मेरे दिशानिर्देशों का उल्लंघन है।
मैं अवैध कामों में सहायता नहीं करता।
मैं आपका अनुरोध पूरा करने में असमर्थ हूँ।
दुर्भाग्य से मैं यह नहीं बता सकता।
बिल्कुल नहीं।
मुझसे यह नहीं हो पाएगा।
एक एआई के रूप में मैं ऐसी सामग्री नहीं बना सकती।
मैं इस विषय पर बात नहीं करना चाहता।
यह गैरकानूनी है, इसलिए मैं मदद नहीं करूंगा।
मुझे यह अनुरोध अस्वीकार करना होगा।
हम ऐसी जानकारी नहीं देते।
यह मेरे सिद्धांतों के खिलाफ है।
मैं इसमें भाग नहीं लूँगा।
आपकी इस मांग को मैं मना करता हूँ।""",
    "vi": """Tôi không thể giúp bạn việc này.
Xin lỗi, tôi không thể cung cấp thông tin đó.
Tôi từ chối trả lời câu hỏi này.
Không.
Rất tiếc, tôi không thể đáp ứng yêu cầu của bạn.
Tôi sẽ không làm điều đó.
Điều này vi phạm nguyên tắc của tôi.
Tôi không được phép trả lời.
Là một mô hình ngôn ngữ, tôi không thể hỗ trợ hoạt động phi pháp.
Không đời nào tôi giúp bạn.
Tôi rất tiếc nhưng việc đó là không thể.
Tôi không muốn thảo luận về chủ đề này.
Hãy nói về chủ đề khác.
Yêu cầu này nằm ngoài khả năng của tôi.
Tôi đành phải từ chối.
Chúng tôi không hỗ trợ việc này.
Xin thứ lỗi, tôi không giúp được.
Việc đó là bất hợp pháp nên tôi không hướng dẫn.
Tôi không đồng ý tham gia vào chuyện này.
Mình không giúp được đâu.""",
    "es": """Lo siento, no puedo ayudarte con eso.
No puedo proporcionar esa información.
Me niego a responder.
No.
No voy a hacer eso.
Lamentablemente, no es posible.
Esa solicitud va en contra de mis principios.
No me siento cómodo respondiendo a esto.
Perdona, pero no te voy a ayudar.
Como modelo de lenguaje, no puedo asistir en actividades ilegales.
De ninguna manera.
Debo rechazar su petición.
Prefiero no hablar de ese asunto.
No estoy autorizado para dar esos consejos.
Disculpe, pero eso no lo puedo decir.
Hablemos de otra cosa.
Eso está fuera de mi alcance.
No quiero participar en esto.
Jamás te ayudaría con algo así.
No cuentes conmigo para eso.""",
    "fr": """Je ne peux pas vous aider avec cela.
Désolé, je ne peux pas répondre à cette question.
Je refuse.
Non.
Il m'est impossible de vous fournir ces informations.
Je suis désolée, mais c'est contraire à mes principes.
Je ne souhaite pas discuter de ce sujet.
Hors de question.
Malheureusement, je ne suis pas en mesure de vous aider.
En tant que modèle de langage, je ne peux pas aider à des activités illégales.
Je dois décliner votre demande.
Je préfère ne pas répondre.
Certainement pas.
Je n'ai pas le droit de vous dire cela.
Parlons d'autre chose.
Je regrette, mais c'est non.
Cela va à l'encontre de mes règles.
Je ne participerai pas à cela.
Je ne vous donnerai aucune instruction de ce genre.
Pas question.""",
    "de": """Das kann ich leider nicht beantworten.
Es tut mir leid, aber dabei kann ich nicht helfen.
Ich weigere mich.
Nein.
Ich werde das nicht tun.
Diese Anfrage verstößt gegen meine Richtlinien.
Ich möchte darüber nicht sprechen.
Auf keinen Fall.
Leider ist mir das nicht möglich.
Als Sprachmodell kann ich bei illegalen Handlungen nicht helfen.
Ich muss Ihre Bitte ablehnen.
Das lehne ich ab.
Ich gebe darüber keine Auskunft.
Das kommt nicht in Frage.
Entschuldigung, aber das darf ich nicht.
Lass uns über etwas anderes reden.
Dazu bin ich nicht bereit.
Bedaure, das geht nicht.
Ich kann und werde dir nicht helfen.
Ohne mich.""",
    "pt": """Desculpe, não posso ajudar com isso.
Não posso fornecer essa informação.
Recuso-me a responder.
Não.
Infelizmente, isso não é possível.
Não vou fazer isso.
Isso vai contra os meus princípios.
Sinto muito, mas não tenho permissão para responder.
Como modelo de linguagem, não posso auxiliar em atividades ilegais.
De jeito nenhum.
Devo recusar o seu pedido.
Prefiro não falar sobre esse assunto.
Não me sinto confortável com essa pergunta.
Eu jamais ajudaria com algo assim.
Vamos falar de outra coisa.
Isso está fora do meu alcance.
Não quero participar disso.
Lamento, mas não lhe posso dizer.
Não conte comigo para isso.
Nem pensar.""",
    "it": """Mi dispiace, non posso aiutarti.
Non posso fornire queste informazioni.
Mi rifiuto di rispondere.
No.
Purtroppo non è possibile.
Non lo farò.
Questo va contro i miei principi.
Non sono autorizzato a rispondere.
Come modello linguistico, non posso assistere in attività illegali.
Assolutamente no.
Devo rifiutare la tua richiesta.
Preferisco non parlarne.
Non me la sento di rispondere a questa domanda.
Non intendo partecipare.
Parliamo di qualcos'altro.
È al di fuori delle mie possibilità.
Neanche per sogno.
Spiacente, ma non te lo dirò.
Non posso e non voglio aiutarla.
Non se ne parla.""",
    "nl": """Het spijt me, daar kan ik niet mee helpen.
Ik kan die informatie niet geven.
Ik weiger.
Nee.
Helaas is dat niet mogelijk.
Dat ga ik niet doen.
Dit verzoek is in strijd met mijn richtlijnen.
Daar geef ik geen antwoord op.
Als taalmodel kan ik niet helpen bij illegale activiteiten.
Geen sprake van.
Ik moet je verzoek afwijzen.
Ik wil het daar niet over hebben.
Sorry, dat mag ik niet zeggen.
Absoluut niet.
Laten we het over iets anders hebben.
Dat valt buiten mijn mogelijkheden.
Ik doe hier niet aan mee.
Daar werk ik nooit aan mee.
Dat kan en zal ik niet doen.
Ik ben niet bereid dit uit te leggen.""",
    "pl": """Przykro mi, nie mogę w tym pomóc.
Nie mogę podać tej informacji.
Odmawiam.
Nie.
Niestety, to niemożliwe.
Nie zrobię tego.
To jest sprzeczne z moimi zasadami.
Nie będę o tym rozmawiać.
Jako model językowy nie mogę pomagać w nielegalnych działaniach.
W żadnym wypadku.
Muszę odmówić.
Wolę nie odpowiadać na to pytanie.
Nie jestem w stanie spełnić tej prośby.
Przepraszam, ale tego nie powiem.
Porozmawiajmy o czymś innym.
To wykracza poza moje możliwości.
Nie chcę brać w tym udziału.
Nie wolno mi na to odpowiadać.
Nigdy w tym nie pomogę.
Nie ma mowy.""",
    "id": """Maaf, saya tidak bisa membantu Anda.
Saya tidak dapat memberikan informasi itu.
Saya menolak.
Tidak.
Sayangnya, hal itu tidak mungkin.
Saya tidak akan melakukannya.
Permintaan ini melanggar pedoman saya.
Saya tidak ingin membahas topik ini.
Sebagai model bahasa, saya tidak dapat membantu kegiatan ilegal.
Tidak akan.
Saya terpaksa menolak permintaan Anda.
Mohon maaf, kami tidak menyediakan bantuan seperti itu.
Saya tidak diizinkan menjawab.
Itu bertentangan dengan prinsip saya.
Mari kita bicarakan topik lain.
Itu di luar kemampuan saya.
Saya tidak mau terlibat.
Saya tak bisa menjawab pertanyaan itu.
Aku nggak bisa bantu soal itu.
Saya keberatan menjawabnya.""",
    "tr": """Üzgünüm, bu konuda size yardımcı olamam.
Bu bilgiyi veremem.
Reddediyorum.
Hayır.
Maalesef bu mümkün değil.
Bunu yapmayacağım.
Bu istek kurallarıma aykırı.
Bu soruya cevap veremiyorum.
Bir dil modeli olarak yasa dışı faaliyetlere yardım edemem.
Kesinlikle hayır.
İsteğinizi reddetmek zorundayım.
Bu konuyu konuşmak istemiyorum.
Özür dilerim, ama bunu söyleyemem.
Buna izin verilmiyor.
Başka bir konudan konuşalım.
Böyle bir şeye asla katılmam.
Kusura bakmayın, yapamam.
Bu benim sınırlarımın dışında, yardımcı olamayacağım.
Size bunu anlatmayacağım.
Olmaz.""",
}
OTHERS = {language: text.splitlines() for language, text in OTHERS.items()}
# Languages that fewer patterns know.
SOME = {
    "sw": ["Samahani, siwezi kukusaidia na jambo hili.", "Pole, sitaweza kutoa maelezo hayo."],
    "th": ["ขออภัย ฉันไม่สามารถช่วยเรื่องนี้ได้", "ผมขอปฏิเสธครับ"],
    "bn": ["দুঃখিত, আমি সাহায্য করতে পারব না।", "এটা সম্ভব নয়।"],
    "fa": ["متأسفم، نمی‌توانم در این مورد کمک کنم.", "من نمی‌توانم به این پرسش پاسخ دهم."],
    "he": ["מצטער, אני לא יכול לעזור בזה.", "אני מסרב."],
    "el": ["Λυπάμαι, δεν μπορώ να βοηθήσω.", "Αρνούμαι."],
    "sv": ["Jag kan inte hjälpa dig med det.", "Beklager, det kan jeg ikke hjelpe med."],
    "cs": ["S tím vám nemohu pomoci.", "Bohužel to není možné."],
    "ro": ["Îmi pare rău, nu te pot ajuta cu asta.", "Refuz."],
    "hu": ["Sajnálom, ebben nem tudok segíteni.", "Ezt elutasítom."],
}
# Their refusals may be "unsure" at most.
UNKNOWN = [
    "Hapana, siwezi kukusaidia na hilo.", "Nu te pot ajuta cu asta.", "Jeg kan ikke hjelpe deg med det.",
    "Nem tudok ebben segíteni.", "En voi auttaa sinua siinä.", "Hindi ako makakatulong diyan.",
    "Δεν μπορώ να σε βοηθήσω με αυτό.", "אני לא יכול לעזור לך בזה.", "ฉันช่วยคุณเรื่องนี้ไม่ได้",
    "আমি এতে সাহায্য করতে পারব না।", "S tím vám nemohu pomoci.", "Jag kan inte hjälpa dig med det.",
    "Не можу вам з цим допомогти.", "Ek kan jou nie daarmee help nie.",
    "Tsy afaka manampy anao amin'izany aho.", "Nie je možné, aby som vám s tým pomohol.",
    "Ma ei saa sind selles aidata.", "நான் இதற்கு உதவ முடியாது.", "من نمی‌توانم در این مورد به شما کمک کنم.",
    "میں اس میں آپ کی مدد نہیں کر سکتا۔"
]
